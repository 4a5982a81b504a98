//! The virtual slot: sessions, operations and objects by the rules of PKCS#11.
