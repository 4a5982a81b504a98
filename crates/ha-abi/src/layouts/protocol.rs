//! Structures of protocols: TLS, WTLS, IKE, one-time passwords, CMS, CT-KIP, X3DH and the double ratchet.

use std::mem::{offset_of, size_of};

use ha_token::ck;

use crate::layout::{FieldSpec, Kind, Layout, Len, OTP_PARAM, kind, layouts, len};

layouts! {
    SSL3_RANDOM = CK_SSL3_RANDOM_DATA {
        pClientRandom: bytes ulClientRandomLen,
        pServerRandom: bytes ulServerRandomLen,
    }
    SSL3_OUT = CK_SSL3_KEY_MAT_OUT {
        hClientMacSecret: handle_out,
        hServerMacSecret: handle_out,
        hClientKey: handle_out,
        hServerKey: handle_out,
        pIVClient: output outer_bits CK_SSL3_KEY_MAT_PARAMS ulIVSizeInBits,
        pIVServer: output outer_bits CK_SSL3_KEY_MAT_PARAMS ulIVSizeInBits,
    }
    SSL3_KEY_MAT = CK_SSL3_KEY_MAT_PARAMS {
        ulMacSizeInBits: ulong,
        ulKeySizeInBits: ulong,
        ulIVSizeInBits: ulong,
        bIsExport: byte,
        RandomInfo: nested SSL3_RANDOM,
        pReturnedKeyMaterial: pointer SSL3_OUT,
    }
    TLS12_KEY_MAT = CK_TLS12_KEY_MAT_PARAMS {
        ulMacSizeInBits: ulong,
        ulKeySizeInBits: ulong,
        ulIVSizeInBits: ulong,
        bIsExport: byte,
        RandomInfo: nested SSL3_RANDOM,
        pReturnedKeyMaterial: pointer SSL3_OUT,
        prfHashMechanism: ulong,
    }
    SSL3_MASTER = CK_SSL3_MASTER_KEY_DERIVE_PARAMS {
        RandomInfo: nested SSL3_RANDOM,
        pVersion: output fixed (2),
    }
    TLS12_MASTER = CK_TLS12_MASTER_KEY_DERIVE_PARAMS {
        RandomInfo: nested SSL3_RANDOM,
        pVersion: output fixed (2),
        prfHashMechanism: ulong,
    }
    TLS12_EXTENDED_MASTER = CK_TLS12_EXTENDED_MASTER_KEY_DERIVE_PARAMS {
        prfHashMechanism: ulong,
        pSessionHash: bytes ulSessionHashLen,
        pVersion: output fixed (2),
    }
    TLS_KDF = CK_TLS_KDF_PARAMS {
        prfMechanism: ulong,
        pLabel: bytes ulLabelLength,
        RandomInfo: nested SSL3_RANDOM,
        pContextData: bytes ulContextDataLength,
    }
    TLS_PRF = CK_TLS_PRF_PARAMS {
        pSeed: bytes ulSeedLen,
        pLabel: bytes ulLabelLen,
        pOutput: output indirect pulOutputLen,
    }
    WTLS_RANDOM = CK_WTLS_RANDOM_DATA {
        pClientRandom: bytes ulClientRandomLen,
        pServerRandom: bytes ulServerRandomLen,
    }
    WTLS_OUT = CK_WTLS_KEY_MAT_OUT {
        hMacSecret: handle_out,
        hKey: handle_out,
        pIV: output outer_bits CK_WTLS_KEY_MAT_PARAMS ulIVSizeInBits,
    }
    WTLS_KEY_MAT = CK_WTLS_KEY_MAT_PARAMS {
        DigestMechanism: ulong,
        ulMacSizeInBits: ulong,
        ulKeySizeInBits: ulong,
        ulIVSizeInBits: ulong,
        ulSequenceNumber: ulong,
        bIsExport: byte,
        RandomInfo: nested WTLS_RANDOM,
        pReturnedKeyMaterial: pointer WTLS_OUT,
    }
    WTLS_MASTER = CK_WTLS_MASTER_KEY_DERIVE_PARAMS {
        DigestMechanism: ulong,
        RandomInfo: nested WTLS_RANDOM,
        pVersion: output fixed (1),
    }
    WTLS_PRF = CK_WTLS_PRF_PARAMS {
        DigestMechanism: ulong,
        pSeed: bytes ulSeedLen,
        pLabel: bytes ulLabelLen,
        pOutput: output indirect pulOutputLen,
    }
    IKE_PRF = CK_IKE_PRF_DERIVE_PARAMS {
        prfMechanism: ulong,
        bDataAsKey: byte,
        bRekey: byte,
        pNi: bytes ulNiLen,
        pNr: bytes ulNrLen,
        hNewKey: handle,
    }
    IKE1_PRF = CK_IKE1_PRF_DERIVE_PARAMS {
        prfMechanism: ulong,
        bHasPrevKey: byte,
        hKeygxy: handle,
        hPrevKey: handle,
        pCKYi: bytes ulCKYiLen,
        pCKYr: bytes ulCKYrLen,
        keyNumber: byte,
    }
    IKE1_EXTENDED = CK_IKE1_EXTENDED_DERIVE_PARAMS {
        prfMechanism: ulong,
        bHasKeygxy: byte,
        hKeygxy: handle,
        pExtraData: bytes ulExtraDataLen,
    }
    IKE2_PRF_PLUS = CK_IKE2_PRF_PLUS_DERIVE_PARAMS {
        prfMechanism: ulong,
        bHasSeedKey: byte,
        hSeedKey: handle,
        pSeedData: bytes ulSeedDataLen,
    }
    OTP = CK_OTP_PARAMS {
        pParams: list ulCount of OTP_PARAM,
    }
    CMS = CK_CMS_SIG_PARAMS {
        certificateHandle: handle,
        pSigningMechanism: mechanism,
        pDigestMechanism: mechanism,
        pContentType: bytes terminated,
        pRequestedAttributes: bytes ulRequestedAttributesLen,
        pRequiredAttributes: bytes ulRequiredAttributesLen,
    }
    KIP = CK_KIP_PARAMS {
        pMechanism: mechanism,
        hKey: handle,
        pSeed: bytes ulSeedLen,
    }
    X3DH_INITIATE = CK_X3DH_INITIATE_PARAMS {
        kdf: ulong,
        pPeer_identity: handle,
        pPeer_prekey: handle,
        pPrekey_signature: bytes unknown,
        pOnetime_key: bytes unknown,
        pOwn_identity: handle,
        pOwn_ephemeral: handle,
    }
    X3DH_RESPOND = CK_X3DH_RESPOND_PARAMS {
        kdf: ulong,
        pIdentity_id: bytes unknown,
        pPrekey_id: bytes unknown,
        pOnetime_id: bytes unknown,
        pInitiator_identity: handle,
        pInitiator_ephemeral: bytes unknown,
    }
    X2RATCHET_INITIALIZE = CK_X2RATCHET_INITIALIZE_PARAMS {
        sk: bytes fixed (32),
        peer_public_prekey: handle,
        peer_public_identity: handle,
        own_public_identity: handle,
        bEncryptedHeader: byte,
        eCurve: ulong,
        aeadMechanism: ulong,
        kdfMechanism: ulong,
    }
    X2RATCHET_RESPOND = CK_X2RATCHET_RESPOND_PARAMS {
        sk: bytes fixed (32),
        own_prekey: handle,
        initiator_identity: handle,
        own_public_identity: handle,
        bEncryptedHeader: byte,
        eCurve: ulong,
        aeadMechanism: ulong,
        kdfMechanism: ulong,
    }
}
