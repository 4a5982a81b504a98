//! Structures of key derivation.

use std::mem::{offset_of, size_of};

use ha_token::ck;

use crate::layout::{FieldSpec, Kind, Layout, Len, PRF_DATA, kind, layouts, len};

layouts! {
    ECDH1 = CK_ECDH1_DERIVE_PARAMS {
        kdf: ulong,
        pSharedData: bytes ulSharedDataLen,
        pPublicData: bytes ulPublicDataLen,
    }
    HKDF = CK_HKDF_PARAMS {
        bExtract: byte,
        bExpand: byte,
        prfHashMechanism: ulong,
        ulSaltType: ulong,
        pSalt: bytes ulSaltLen,
        hSaltKey: handle,
        pInfo: bytes ulInfoLen,
    }
    STRING_DATA = CK_KEY_DERIVATION_STRING_DATA {
        pData: bytes ulLen,
    }
    AES_CBC_DATA = CK_AES_CBC_ENCRYPT_DATA_PARAMS {
        iv: inline (16),
        pData: bytes length,
    }
    ARIA_CBC_DATA = CK_ARIA_CBC_ENCRYPT_DATA_PARAMS {
        iv: inline (16),
        pData: bytes length,
    }
    CAMELLIA_CBC_DATA = CK_CAMELLIA_CBC_ENCRYPT_DATA_PARAMS {
        iv: inline (16),
        pData: bytes length,
    }
    SEED_CBC_DATA = CK_SEED_CBC_ENCRYPT_DATA_PARAMS {
        iv: inline (16),
        pData: bytes length,
    }
    DES_CBC_DATA = CK_DES_CBC_ENCRYPT_DATA_PARAMS {
        iv: inline (8),
        pData: bytes length,
    }
    DERIVED_KEY = CK_DERIVED_KEY {
        pTemplate: template ulAttributeCount,
        phKey: handle_ptr_out,
    }
    SP800_108 = CK_SP800_108_KDF_PARAMS {
        prfType: ulong,
        pDataParams: list ulNumberOfDataParams of PRF_DATA,
        pAdditionalDerivedKeys: list ulAdditionalDerivedKeys of DERIVED_KEY,
    }
    SP800_108_FEEDBACK = CK_SP800_108_FEEDBACK_KDF_PARAMS {
        prfType: ulong,
        pDataParams: list ulNumberOfDataParams of PRF_DATA,
        pIV: bytes ulIVLen,
        pAdditionalDerivedKeys: list ulAdditionalDerivedKeys of DERIVED_KEY,
    }
    PBKD2 = CK_PKCS5_PBKD2_PARAMS2 {
        saltSource: ulong,
        pSaltSourceData: bytes ulSaltSourceDataLen,
        iterations: ulong,
        prf: ulong,
        pPrfData: bytes ulPrfDataLen,
        pPassword: bytes ulPasswordLen,
    }
    PBKD2_OLD = CK_PKCS5_PBKD2_PARAMS {
        saltSource: ulong,
        pSaltSourceData: bytes ulSaltSourceDataLen,
        iterations: ulong,
        prf: ulong,
        pPrfData: bytes ulPrfDataLen,
        pPassword: bytes indirect ulPasswordLen,
    }
    PBE = CK_PBE_PARAMS {
        pInitVector: output fixed (8),
        pPassword: bytes ulPasswordLen,
        pSalt: bytes ulSaltLen,
        ulIteration: ulong,
    }
    ECDH2 = CK_ECDH2_DERIVE_PARAMS {
        kdf: ulong,
        pSharedData: bytes ulSharedDataLen,
        pPublicData: bytes ulPublicDataLen,
        ulPrivateDataLen: ulong,
        hPrivateData: handle,
        pPublicData2: bytes ulPublicDataLen2,
    }
    ECMQV = CK_ECMQV_DERIVE_PARAMS {
        kdf: ulong,
        pSharedData: bytes ulSharedDataLen,
        pPublicData: bytes ulPublicDataLen,
        ulPrivateDataLen: ulong,
        hPrivateData: handle,
        pPublicData2: bytes ulPublicDataLen2,
        publicKey: handle,
    }
    X942_DH1 = CK_X9_42_DH1_DERIVE_PARAMS {
        kdf: ulong,
        pOtherInfo: bytes ulOtherInfoLen,
        pPublicData: bytes ulPublicDataLen,
    }
    X942_DH2 = CK_X9_42_DH2_DERIVE_PARAMS {
        kdf: ulong,
        pOtherInfo: bytes ulOtherInfoLen,
        pPublicData: bytes ulPublicDataLen,
        ulPrivateDataLen: ulong,
        hPrivateData: handle,
        pPublicData2: bytes ulPublicDataLen2,
    }
    X942_MQV = CK_X9_42_MQV_DERIVE_PARAMS {
        kdf: ulong,
        OtherInfo: bytes ulOtherInfoLen,
        PublicData: bytes ulPublicDataLen,
        ulPrivateDataLen: ulong,
        hPrivateData: handle,
        PublicData2: bytes ulPublicDataLen2,
        publicKey: handle,
    }
    KEA = CK_KEA_DERIVE_PARAMS {
        isSender: byte,
        RandomA: bytes ulRandomLen,
        RandomB: bytes ulRandomLen,
        PublicData: bytes ulPublicDataLen,
    }
    GOST = CK_GOSTR3410_DERIVE_PARAMS {
        kdf: ulong,
        pPublicData: bytes ulPublicDataLen,
        pUKM: bytes ulUKMLen,
    }
}
