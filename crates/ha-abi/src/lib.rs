//! PKCS#11 C structures to plain data and back.
