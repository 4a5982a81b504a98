//! Structures of ciphers, signatures and key wrapping.

use std::mem::{offset_of, size_of};

use ha_token::ck;

use crate::layout::{FieldSpec, Kind, Layout, Len, kind, layouts, len};

layouts! {
    GCM = CK_GCM_PARAMS {
        pIv: output ulIvLen,
        ulIvBits: ulong,
        pAAD: bytes ulAADLen,
        ulTagBits: ulong,
    }
    OAEP = CK_RSA_PKCS_OAEP_PARAMS {
        hashAlg: ulong,
        mgf: ulong,
        source: ulong,
        pSourceData: bytes ulSourceDataLen,
    }
    EDDSA = CK_EDDSA_PARAMS {
        phFlag: byte,
        pContextData: bytes ulContextDataLen,
    }
    CONTEXT = CK_SIGN_ADDITIONAL_CONTEXT {
        hedgeVariant: ulong,
        pContext: bytes ulContextLen,
    }
    HASH_CONTEXT = CK_HASH_SIGN_ADDITIONAL_CONTEXT {
        hedgeVariant: ulong,
        pContext: bytes ulContextLen,
        hash: ulong,
    }
    CCM = CK_CCM_PARAMS {
        ulDataLen: ulong,
        pNonce: output ulNonceLen,
        pAAD: bytes ulAADLen,
        ulMACLen: ulong,
    }
    GCM_MESSAGE = CK_GCM_MESSAGE_PARAMS {
        pIv: output ulIvLen,
        ulIvFixedBits: ulong,
        ivGenerator: ulong,
        pTag: output bits ulTagBits,
        ulTagBits: ulong,
    }
    CCM_MESSAGE = CK_CCM_MESSAGE_PARAMS {
        ulDataLen: ulong,
        pNonce: output ulNonceLen,
        ulNonceFixedBits: ulong,
        nonceGenerator: ulong,
        pMAC: output listed ulMACLen,
        ulMACLen: ulong,
    }
    GCM_WRAP = CK_GCM_WRAP_PARAMS {
        pIv: output ulIvLen,
        ulIvFixedBits: ulong,
        ivGenerator: ulong,
        pAAD: bytes ulAADLen,
        ulTagBits: ulong,
    }
    CCM_WRAP = CK_CCM_WRAP_PARAMS {
        ulDataLen: ulong,
        pNonce: output ulNonceLen,
        ulNonceFixedBits: ulong,
        nonceGenerator: ulong,
        pAAD: bytes ulAADLen,
        ulMACLen: ulong,
    }
    CHACHA20 = CK_CHACHA20_PARAMS {
        pBlockCounter: bytes bits blockCounterBits,
        blockCounterBits: ulong,
        pNonce: bytes bits ulNonceBits,
        ulNonceBits: ulong,
    }
    SALSA20 = CK_SALSA20_PARAMS {
        pBlockCounter: bytes fixed (8),
        pNonce: bytes bits ulNonceBits,
        ulNonceBits: ulong,
    }
    POLY1305 = CK_SALSA20_CHACHA20_POLY1305_PARAMS {
        pNonce: bytes ulNonceLen,
        pAAD: bytes ulAADLen,
    }
    POLY1305_MESSAGE = CK_SALSA20_CHACHA20_POLY1305_MSG_PARAMS {
        pNonce: output ulNonceLen,
        pTag: output fixed (16),
    }
    RSA_AES_WRAP = CK_RSA_AES_KEY_WRAP_PARAMS {
        ulAESKeyBits: ulong,
        pOAEPParams: pointer OAEP,
    }
    ECDH_AES_WRAP = CK_ECDH_AES_KEY_WRAP_PARAMS {
        ulAESKeyBits: ulong,
        kdf: ulong,
        pSharedData: bytes ulSharedDataLen,
    }
    RC5_CBC = CK_RC5_CBC_PARAMS {
        ulWordsize: ulong,
        ulRounds: ulong,
        pIv: bytes ulIvLen,
    }
    SET_OAEP = CK_KEY_WRAP_SET_OAEP_PARAMS {
        bBC: byte,
        pX: bytes ulXLen,
    }
    GOST_WRAP = CK_GOSTR3410_KEY_WRAP_PARAMS {
        pWrapOID: bytes ulWrapOIDLen,
        pUKM: bytes ulUKMLen,
        hKey: handle,
    }
    DSA_GEN = CK_DSA_PARAMETER_GEN_PARAM {
        hash: ulong,
        pSeed: output ulSeedLen,
        ulIndex: ulong,
    }
    SKIPJACK_WRAP = CK_SKIPJACK_PRIVATE_WRAP_PARAMS {
        pPassword: bytes ulPasswordLen,
        pPublicData: bytes ulPublicDataLen,
        pRandomA: bytes ulRandomLen,
        pPrimeP: bytes ulPAndGLen,
        pBaseG: bytes ulPAndGLen,
        pSubprimeQ: bytes ulQLen,
    }
    SKIPJACK_RELAYX = CK_SKIPJACK_RELAYX_PARAMS {
        pOldWrappedX: bytes ulOldWrappedXLen,
        pOldPassword: bytes ulOldPasswordLen,
        pOldPublicData: bytes ulOldPublicDataLen,
        pOldRandomA: bytes ulOldRandomLen,
        pNewPassword: bytes ulNewPasswordLen,
        pNewPublicData: bytes ulNewPublicDataLen,
        pNewRandomA: bytes ulNewRandomLen,
    }
}
