//! Objects: search, creation, attributes.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use cryptoki::context::Function;
use cryptoki::error::{Error, Result};
use cryptoki::object::{Attribute, AttributeInfo, AttributeType, ObjectHandle};
use ha_token::ck::CK_ATTRIBUTE;
use ha_token::{Fetched, Value};

use super::super::convert::{self, OrError, from_handle, to_handle};
use super::Session;

/// How many handles are fetched at a time where the caller does not say.
const BATCH: NonZeroUsize = match NonZeroUsize::new(10) {
    Some(n) => n,
    None => NonZeroUsize::MIN,
};

/// The handles that a search finds, fetched a batch at a time. While it lives another search in the same session
/// answers `CKR_OPERATION_ACTIVE`; dropping it ends the search.
#[derive(Debug)]
pub struct ObjectHandleIterator<'a> {
    session: &'a Session,
    batch: std::vec::IntoIter<ha_token::ObjectHandle>,
    batch_size: NonZeroUsize,
    exhausted: bool,
}

impl Iterator for ObjectHandleIterator<'_> {
    type Item = Result<ObjectHandle>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(handle) = self.batch.next() {
            return Some(Ok(to_handle(handle)));
        }
        if self.exhausted {
            return None;
        }
        let max = self.batch_size.get();
        match self.session.raw(|token, session| token.find_objects(session, max)) {
            Ok(found) => {
                self.exhausted = found.len() < max;
                self.batch = found.into_iter();
                self.batch.next().map(|handle| Ok(to_handle(handle)))
            }
            Err(rv) => {
                self.exhausted = true;
                Some(Err(convert::error(rv, Function::FindObjects)))
            }
        }
    }
}

impl Drop for ObjectHandleIterator<'_> {
    fn drop(&mut self) {
        if let Err(rv) = self.session.raw(|token, session| token.find_objects_final(session)) {
            tracing::error!(session = self.session.handle(), %rv, "a search could not be ended");
        }
    }
}

impl Session {
    /// The objects that match every attribute of `template`.
    ///
    /// # Errors
    /// `CKR_OPERATION_ACTIVE` while another search is open in the session.
    pub fn iter_objects(&self, template: &[Attribute]) -> Result<ObjectHandleIterator<'_>> {
        self.iter_objects_with_cache_size(template, BATCH)
    }

    /// As [`Session::iter_objects`], fetching `cache_size` handles at a time.
    ///
    /// # Errors
    /// As [`Session::iter_objects`].
    pub fn iter_objects_with_cache_size(
        &self,
        template: &[Attribute],
        cache_size: NonZeroUsize,
    ) -> Result<ObjectHandleIterator<'_>> {
        let template = convert::template(template);
        self.call(Function::FindObjectsInit, |token, session| token.find_objects_init(session, &template))?;
        Ok(ObjectHandleIterator {
            session: self,
            batch: Vec::new().into_iter(),
            batch_size: cache_size,
            exhausted: false,
        })
    }

    /// All objects that match every attribute of `template`.
    ///
    /// # Errors
    /// The first one met.
    pub fn find_objects(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>> {
        self.iter_objects(template)?.collect()
    }

    /// Makes an object of the attributes.
    ///
    /// # Errors
    /// As `C_CreateObject`.
    pub fn create_object(&self, template: &[Attribute]) -> Result<ObjectHandle> {
        let template = convert::template(template);
        self.call(Function::CreateObject, |token, session| token.create_object(session, &template))
            .map(to_handle)
    }

    /// Destroys an object, on every member that has it.
    ///
    /// # Errors
    /// As `C_DestroyObject`.
    pub fn destroy_object(&self, object: ObjectHandle) -> Result<()> {
        self.call(Function::DestroyObject, |token, session| {
            token.destroy_object(session, from_handle(object))
        })
    }

    /// Copies an object, with the attributes of `template` changed.
    ///
    /// # Errors
    /// As `C_CopyObject`.
    pub fn copy_object(&self, object: ObjectHandle, template: &[Attribute]) -> Result<ObjectHandle> {
        let template = convert::template(template);
        self.call(Function::CopyObject, |token, session| {
            token.copy_object(session, from_handle(object), &template)
        })
        .map(to_handle)
    }

    /// For each type, in order: whether the object has it, may reveal it, and how long it is in bytes.
    ///
    /// # Errors
    /// As `C_GetAttributeValue`, for the call as a whole.
    pub fn get_attribute_info(
        &self,
        object: ObjectHandle,
        attributes: &[AttributeType],
    ) -> Result<Vec<AttributeInfo>> {
        let info = |fetched: Fetched| match fetched {
            Fetched::Value(value) => AttributeInfo::Available(c_len(&value)),
            Fetched::Sensitive => AttributeInfo::Sensitive,
            Fetched::Invalid => AttributeInfo::TypeInvalid,
        };
        Ok(self.fetch(object, attributes)?.into_iter().map(info).collect())
    }

    /// As [`Session::get_attribute_info`], by type.
    ///
    /// # Errors
    /// As [`Session::get_attribute_info`].
    pub fn get_attribute_info_map(
        &self,
        object: ObjectHandle,
        attributes: &[AttributeType],
    ) -> Result<HashMap<AttributeType, AttributeInfo>> {
        let info = self.get_attribute_info(object, attributes)?;
        Ok(attributes.iter().copied().zip(info).collect())
    }

    /// The attributes of these types that the object has and may reveal, in order; the others are left out.
    ///
    /// # Errors
    /// As `C_GetAttributeValue`, for the call as a whole; `Error::InvalidValue` for a value that its type cannot have.
    pub fn get_attributes(
        &self,
        object: ObjectHandle,
        attributes: &[AttributeType],
    ) -> Result<Vec<Attribute>> {
        let mut found = Vec::with_capacity(attributes.len());
        for (kind, fetched) in attributes.iter().zip(self.fetch(object, attributes)?) {
            if let Fetched::Value(value) = fetched {
                let attribute = ha_abi::to_cryptoki_attribute((*kind).into(), &value);
                found.push(attribute.ok_or(Error::InvalidValue)?);
            }
        }
        Ok(found)
    }

    /// Sets attributes, on every member that has the object.
    ///
    /// # Errors
    /// As `C_SetAttributeValue`.
    pub fn update_attributes(&self, object: ObjectHandle, template: &[Attribute]) -> Result<()> {
        let template = convert::template(template);
        self.call(Function::SetAttributeValue, |token, session| {
            token.set_attributes(session, from_handle(object), &template)
        })
    }

    fn fetch(&self, object: ObjectHandle, attributes: &[AttributeType]) -> Result<Vec<Fetched>> {
        let types: Vec<_> = attributes.iter().map(|kind| (*kind).into()).collect();
        self.raw(|token, session| token.get_attributes(session, from_handle(object), &types))
            .or_error(Function::GetAttributeValue)
    }
}

/// The length of a value in its C form.
fn c_len(value: &Value) -> usize {
    match value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Template(template) => template.len() * size_of::<CK_ATTRIBUTE>(),
    }
}
