//! The API with the names, methods and types of the `cryptoki` crate.
