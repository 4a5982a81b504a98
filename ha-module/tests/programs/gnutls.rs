//! gnutls
