//! A key found by its attributes, exactly one.

use cryptoki::error::Error;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use super::session::Session;

/// A key of a token, found by attributes that fit it and no other.
///
/// PKCS#11 lets several objects have one label or one `CKA_ID`, and a search gives them in any order: a program that
/// takes the first signs with whichever that is. Here two that fit are an error.
#[derive(Clone, Debug)]
pub struct Key {
    handle: ObjectHandle,
    class: ObjectClass,
    key_type: KeyType,
    id: Vec<u8>,
    label: String,
}

/// Why there is no key to use.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Nothing fits. Private keys are found only while logged in.
    #[error("no key fits the attributes; is the token logged in, and the label or id right?")]
    NotFound,
    /// More than one fits.
    #[error(
        "{count} keys fit the attributes; add CKA_ID, CKA_LABEL, CKA_CLASS or CKA_KEY_TYPE until one does"
    )]
    Ambiguous {
        /// How many.
        count: usize,
    },
    /// What was found has no class or key type, so it is no key.
    #[error("what fits the attributes is not a key; add CKA_CLASS")]
    NotAKey,
    /// The token's own error.
    #[error(transparent)]
    Token(#[from] Error),
}

impl Key {
    /// The one object that has all these attributes, which must be a key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn find(session: &Session, attributes: &[Attribute]) -> Result<Self, KeyError> {
        let found = session.find_objects(attributes)?;
        match found.as_slice() {
            [handle] => Self::describe(session, *handle),
            [] => Err(KeyError::NotFound),
            many => Err(KeyError::Ambiguous { count: many.len() }),
        }
    }

    /// The one private key that has all these attributes.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn find_private(session: &Session, attributes: &[Attribute]) -> Result<Self, KeyError> {
        Self::find_class(session, ObjectClass::PRIVATE_KEY, attributes)
    }

    /// The one public key that has all these attributes.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn find_public(session: &Session, attributes: &[Attribute]) -> Result<Self, KeyError> {
        Self::find_class(session, ObjectClass::PUBLIC_KEY, attributes)
    }

    /// The one secret key that has all these attributes.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn find_secret(session: &Session, attributes: &[Attribute]) -> Result<Self, KeyError> {
        Self::find_class(session, ObjectClass::SECRET_KEY, attributes)
    }

    fn find_class(session: &Session, class: ObjectClass, attributes: &[Attribute]) -> Result<Self, KeyError> {
        let mut all = vec![Attribute::Class(class)];
        all.extend_from_slice(attributes);
        Self::find(session, &all)
    }

    fn describe(session: &Session, handle: ObjectHandle) -> Result<Self, KeyError> {
        let wanted = [AttributeType::Class, AttributeType::KeyType, AttributeType::Id, AttributeType::Label];
        let (mut class, mut key_type, mut id, mut label) = (None, None, Vec::new(), String::new());
        for attribute in session.get_attributes(handle, &wanted)? {
            match attribute {
                Attribute::Class(c) => class = Some(c),
                Attribute::KeyType(k) => key_type = Some(k),
                Attribute::Id(bytes) => id = bytes,
                Attribute::Label(bytes) => label = String::from_utf8_lossy(&bytes).into_owned(),
                _ => {}
            }
        }
        match (class, key_type) {
            (Some(class), Some(key_type)) => Ok(Key { handle, class, key_type, id, label }),
            _ => Err(KeyError::NotAKey),
        }
    }

    /// The handle, for the methods of [`Session`]. Valid in every session of the instance with this token, until the
    /// key is destroyed or, for a private one, the token logged out.
    pub fn handle(&self) -> ObjectHandle {
        self.handle
    }

    /// Private, public or secret.
    pub fn class(&self) -> ObjectClass {
        self.class
    }

    /// RSA, EC, AES and so on.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// `CKA_ID`; empty when it has none.
    pub fn id(&self) -> &[u8] {
        &self.id
    }

    /// `CKA_LABEL`; empty when it has none.
    pub fn label(&self) -> &str {
        &self.label
    }
}

impl From<&Key> for ObjectHandle {
    fn from(key: &Key) -> Self {
        key.handle
    }
}
