//! Which parameter a mechanism takes.

use std::mem::size_of;

use ha_token::ck::{self, *};

use crate::layout::{HANDLE, Layout};
use crate::layouts::{derive as d, protocol as p, symmetric as s};

/// What a mechanism's parameter may be.
pub(crate) enum Shape {
    /// Bytes of any length: an IV, a number, or a vendor's own.
    Bytes,
    /// A structure of numbers only, of this size.
    Plain(usize),
    /// One of these structures, told apart by size (the engine tells those of equal size apart).
    Structs(&'static [&'static Layout]),
    /// This structure if the size is its, else bytes.
    StructOrBytes(&'static Layout),
}

/// The parameter that a mechanism takes at its `…Init` or one-shot call.
pub(crate) fn shape(kind: CK_MECHANISM_TYPE) -> Shape {
    use Shape::{Bytes, Plain, StructOrBytes, Structs};
    match kind {
        CKM_AES_GCM => Structs(const { &[&s::GCM, &s::GCM_WRAP] }),
        CKM_AES_CCM => Structs(const { &[&s::CCM, &s::CCM_MESSAGE, &s::CCM_WRAP] }),
        CKM_AES_GMAC => StructOrBytes(&s::GCM),
        CKM_AES_CTR => Plain(size_of::<ck::CK_AES_CTR_PARAMS>()),
        CKM_CAMELLIA_CTR => Plain(size_of::<ck::CK_CAMELLIA_CTR_PARAMS>()),
        CKM_RSA_PKCS_OAEP | CKM_RSA_PKCS_OAEP_TPM_1_1 => Structs(const { &[&s::OAEP] }),
        CKM_RSA_PKCS_PSS
        | CKM_SHA1_RSA_PKCS_PSS
        | CKM_SHA224_RSA_PKCS_PSS
        | CKM_SHA256_RSA_PKCS_PSS
        | CKM_SHA384_RSA_PKCS_PSS
        | CKM_SHA512_RSA_PKCS_PSS
        | CKM_SHA3_224_RSA_PKCS_PSS
        | CKM_SHA3_256_RSA_PKCS_PSS
        | CKM_SHA3_384_RSA_PKCS_PSS
        | CKM_SHA3_512_RSA_PKCS_PSS => Plain(size_of::<ck::CK_RSA_PKCS_PSS_PARAMS>()),
        CKM_EDDSA => Structs(const { &[&s::EDDSA] }),
        CKM_XEDDSA => Plain(size_of::<ck::CK_XEDDSA_PARAMS>()),
        CKM_HASH_ML_DSA | CKM_HASH_SLH_DSA => Structs(const { &[&s::HASH_CONTEXT] }),
        CKM_ML_DSA
        | CKM_HASH_ML_DSA_SHA224
        | CKM_HASH_ML_DSA_SHA256
        | CKM_HASH_ML_DSA_SHA384
        | CKM_HASH_ML_DSA_SHA512
        | CKM_HASH_ML_DSA_SHA3_224
        | CKM_HASH_ML_DSA_SHA3_256
        | CKM_HASH_ML_DSA_SHA3_384
        | CKM_HASH_ML_DSA_SHA3_512
        | CKM_HASH_ML_DSA_SHAKE128
        | CKM_HASH_ML_DSA_SHAKE256
        | CKM_SLH_DSA
        | CKM_HASH_SLH_DSA_SHA224
        | CKM_HASH_SLH_DSA_SHA256
        | CKM_HASH_SLH_DSA_SHA384
        | CKM_HASH_SLH_DSA_SHA512
        | CKM_HASH_SLH_DSA_SHA3_224
        | CKM_HASH_SLH_DSA_SHA3_256
        | CKM_HASH_SLH_DSA_SHA3_384
        | CKM_HASH_SLH_DSA_SHA3_512
        | CKM_HASH_SLH_DSA_SHAKE128
        | CKM_HASH_SLH_DSA_SHAKE256 => Structs(const { &[&s::CONTEXT] }),
        CKM_CHACHA20 => Structs(const { &[&s::CHACHA20] }),
        CKM_SALSA20 => Structs(const { &[&s::SALSA20] }),
        CKM_CHACHA20_POLY1305 | CKM_SALSA20_POLY1305 => {
            Structs(const { &[&s::POLY1305, &s::POLY1305_MESSAGE] })
        }
        CKM_RSA_AES_KEY_WRAP => Structs(const { &[&s::RSA_AES_WRAP] }),
        CKM_ECDH_AES_KEY_WRAP | CKM_ECDH_X_AES_KEY_WRAP | CKM_ECDH_COF_AES_KEY_WRAP => {
            Structs(const { &[&s::ECDH_AES_WRAP] })
        }
        CKM_RC2_CBC | CKM_RC2_CBC_PAD => Plain(size_of::<ck::CK_RC2_CBC_PARAMS>()),
        CKM_RC2_MAC_GENERAL => Plain(size_of::<ck::CK_RC2_MAC_GENERAL_PARAMS>()),
        CKM_RC5_ECB | CKM_RC5_MAC => Plain(size_of::<ck::CK_RC5_PARAMS>()),
        CKM_RC5_MAC_GENERAL => Plain(size_of::<ck::CK_RC5_MAC_GENERAL_PARAMS>()),
        CKM_RC5_CBC | CKM_RC5_CBC_PAD => Structs(const { &[&s::RC5_CBC] }),
        CKM_KEY_WRAP_SET_OAEP => Structs(const { &[&s::SET_OAEP] }),
        CKM_GOSTR3410_KEY_WRAP => Structs(const { &[&s::GOST_WRAP] }),
        CKM_DSA_PROBABILISTIC_PARAMETER_GEN | CKM_DSA_SHAWE_TAYLOR_PARAMETER_GEN | CKM_DSA_FIPS_G_GEN => {
            Structs(const { &[&s::DSA_GEN] })
        }
        CKM_SKIPJACK_PRIVATE_WRAP => Structs(const { &[&s::SKIPJACK_WRAP] }),
        CKM_SKIPJACK_RELAYX => Structs(const { &[&s::SKIPJACK_RELAYX] }),

        CKM_ECDH1_DERIVE | CKM_ECDH1_COFACTOR_DERIVE => Structs(const { &[&d::ECDH1, &d::ECDH2] }),
        CKM_ECMQV_DERIVE => Structs(const { &[&d::ECMQV, &d::ECDH2] }),
        CKM_X9_42_DH_DERIVE => Structs(const { &[&d::X942_DH1] }),
        CKM_X9_42_DH_HYBRID_DERIVE => Structs(const { &[&d::X942_DH2] }),
        CKM_X9_42_MQV_DERIVE => Structs(const { &[&d::X942_MQV] }),
        CKM_KEA_KEY_DERIVE | CKM_KEA_DERIVE => Structs(const { &[&d::KEA] }),
        CKM_GOSTR3410_DERIVE => Structs(const { &[&d::GOST] }),
        CKM_HKDF_DERIVE | CKM_HKDF_DATA => Structs(const { &[&d::HKDF] }),
        CKM_CONCATENATE_BASE_AND_KEY => Structs(const { &[&HANDLE] }),
        CKM_CONCATENATE_BASE_AND_DATA
        | CKM_CONCATENATE_DATA_AND_BASE
        | CKM_XOR_BASE_AND_DATA
        | CKM_DES_ECB_ENCRYPT_DATA
        | CKM_DES3_ECB_ENCRYPT_DATA
        | CKM_AES_ECB_ENCRYPT_DATA
        | CKM_CAMELLIA_ECB_ENCRYPT_DATA
        | CKM_ARIA_ECB_ENCRYPT_DATA
        | CKM_SEED_ECB_ENCRYPT_DATA => Structs(const { &[&d::STRING_DATA] }),
        CKM_AES_CBC_ENCRYPT_DATA => Structs(const { &[&d::AES_CBC_DATA] }),
        CKM_ARIA_CBC_ENCRYPT_DATA => Structs(const { &[&d::ARIA_CBC_DATA] }),
        CKM_CAMELLIA_CBC_ENCRYPT_DATA => Structs(const { &[&d::CAMELLIA_CBC_DATA] }),
        CKM_SEED_CBC_ENCRYPT_DATA => Structs(const { &[&d::SEED_CBC_DATA] }),
        CKM_DES_CBC_ENCRYPT_DATA | CKM_DES3_CBC_ENCRYPT_DATA => Structs(const { &[&d::DES_CBC_DATA] }),
        CKM_SP800_108_COUNTER_KDF | CKM_SP800_108_DOUBLE_PIPELINE_KDF => Structs(const { &[&d::SP800_108] }),
        CKM_SP800_108_FEEDBACK_KDF => Structs(const { &[&d::SP800_108_FEEDBACK] }),
        CKM_PKCS5_PBKD2 => Structs(const { &[&d::PBKD2] }),
        CKM_PBE_MD2_DES_CBC
        | CKM_PBE_MD5_DES_CBC
        | CKM_PBE_MD5_CAST_CBC
        | CKM_PBE_MD5_CAST3_CBC
        | CKM_PBE_MD5_CAST128_CBC
        | CKM_PBE_SHA1_CAST128_CBC
        | CKM_PBE_SHA1_RC4_128
        | CKM_PBE_SHA1_RC4_40
        | CKM_PBE_SHA1_DES3_EDE_CBC
        | CKM_PBE_SHA1_DES2_EDE_CBC
        | CKM_PBE_SHA1_RC2_128_CBC
        | CKM_PBE_SHA1_RC2_40_CBC
        | CKM_PBA_SHA1_WITH_SHA1_HMAC => Structs(const { &[&d::PBE] }),

        CKM_SSL3_MASTER_KEY_DERIVE
        | CKM_SSL3_MASTER_KEY_DERIVE_DH
        | CKM_TLS_MASTER_KEY_DERIVE
        | CKM_TLS_MASTER_KEY_DERIVE_DH => Structs(const { &[&p::SSL3_MASTER] }),
        CKM_SSL3_KEY_AND_MAC_DERIVE | CKM_TLS_KEY_AND_MAC_DERIVE => Structs(const { &[&p::SSL3_KEY_MAT] }),
        CKM_TLS12_MASTER_KEY_DERIVE | CKM_TLS12_MASTER_KEY_DERIVE_DH => {
            Structs(const { &[&p::TLS12_MASTER] })
        }
        CKM_TLS12_EXTENDED_MASTER_KEY_DERIVE | CKM_TLS12_EXTENDED_MASTER_KEY_DERIVE_DH => {
            Structs(const { &[&p::TLS12_EXTENDED_MASTER] })
        }
        CKM_TLS12_KEY_AND_MAC_DERIVE | CKM_TLS12_KEY_SAFE_DERIVE => Structs(const { &[&p::TLS12_KEY_MAT] }),
        CKM_TLS12_KDF | CKM_TLS_KDF => Structs(const { &[&p::TLS_KDF] }),
        CKM_TLS12_MAC | CKM_TLS_MAC => Plain(size_of::<ck::CK_TLS_MAC_PARAMS>()),
        CKM_TLS_PRF => Structs(const { &[&p::TLS_PRF] }),
        CKM_WTLS_MASTER_KEY_DERIVE | CKM_WTLS_MASTER_KEY_DERIVE_DH_ECC => {
            Structs(const { &[&p::WTLS_MASTER] })
        }
        CKM_WTLS_SERVER_KEY_AND_MAC_DERIVE | CKM_WTLS_CLIENT_KEY_AND_MAC_DERIVE => {
            Structs(const { &[&p::WTLS_KEY_MAT] })
        }
        CKM_WTLS_PRF => Structs(const { &[&p::WTLS_PRF] }),
        CKM_IKE_PRF_DERIVE => Structs(const { &[&p::IKE_PRF] }),
        CKM_IKE1_PRF_DERIVE => Structs(const { &[&p::IKE1_PRF] }),
        CKM_IKE1_EXTENDED_DERIVE => Structs(const { &[&p::IKE1_EXTENDED] }),
        CKM_IKE2_PRF_PLUS_DERIVE => Structs(const { &[&p::IKE2_PRF_PLUS] }),
        CKM_SECURID | CKM_HOTP | CKM_ACTI => Structs(const { &[&p::OTP] }),
        CKM_CMS_SIG => Structs(const { &[&p::CMS] }),
        CKM_KIP_DERIVE | CKM_KIP_WRAP | CKM_KIP_MAC => Structs(const { &[&p::KIP] }),
        CKM_X3DH_INITIALIZE => Structs(const { &[&p::X3DH_INITIATE] }),
        CKM_X3DH_RESPOND => Structs(const { &[&p::X3DH_RESPOND] }),
        CKM_X2RATCHET_INITIALIZE => Structs(const { &[&p::X2RATCHET_INITIALIZE] }),
        CKM_X2RATCHET_RESPOND => Structs(const { &[&p::X2RATCHET_RESPOND] }),
        _ => Bytes,
    }
}

/// The parameter that a mechanism takes for each message (`C_EncryptMessage` and its kin).
pub(crate) fn message_shape(kind: CK_MECHANISM_TYPE) -> Shape {
    match kind {
        CKM_AES_GCM => Shape::Structs(const { &[&s::GCM_MESSAGE] }),
        CKM_AES_CCM => Shape::Structs(const { &[&s::CCM_MESSAGE] }),
        CKM_CHACHA20_POLY1305 | CKM_SALSA20_POLY1305 => Shape::Structs(const { &[&s::POLY1305_MESSAGE] }),
        _ => Shape::Bytes,
    }
}
