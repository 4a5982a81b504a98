//! Keys: made, wrapped, unwrapped, derived and encapsulated.

use cryptoki_sys::{CK_ATTRIBUTE, CK_BYTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG};
use ha_token::{ObjectHandle, Rv};

use crate::guard::entry;
use crate::sessions::session;

entry! {
    /// `C_GenerateKey`.
    fn C_GenerateKey is GenerateKey(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    ) |caller, provider| {
        let place = caller.place(key)?;
        let template = caller.template(template, count)?;
        let key = caller.with_mechanism(mechanism, |mechanism| {
            let (token, session) = session(provider, handle)?;
            token.generate_key(session, mechanism, &template)
        })?;
        place.put(key.0);
        Ok(())
    }

    /// `C_GenerateKeyPair`.
    fn C_GenerateKeyPair is GenerateKeyPair(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        public: *mut CK_ATTRIBUTE,
        public_count: CK_ULONG,
        private: *mut CK_ATTRIBUTE,
        private_count: CK_ULONG,
        public_key: *mut CK_OBJECT_HANDLE,
        private_key: *mut CK_OBJECT_HANDLE,
    ) |caller, provider| {
        let public_place = caller.place(public_key)?;
        let private_place = caller.place(private_key)?;
        let public = caller.template(public, public_count)?;
        let private = caller.template(private, private_count)?;
        let (public_key, private_key) = caller.with_mechanism(mechanism, |mechanism| {
            let (token, session) = session(provider, handle)?;
            token.generate_key_pair(session, mechanism, &public, &private)
        })?;
        public_place.put(public_key.0);
        private_place.put(private_key.0);
        Ok(())
    }

    /// `C_WrapKey`.
    fn C_WrapKey is WrapKey(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
        wrapped: *mut CK_BYTE,
        wrapped_len: *mut CK_ULONG,
    ) |caller, provider| {
        caller.output(wrapped, wrapped_len, |output| {
            caller.with_mechanism(mechanism, |mechanism| {
                let (token, session) = session(provider, handle)?;
                token.wrap_key(session, mechanism, ObjectHandle(wrapping), ObjectHandle(key), output)
            })
        })
    }

    /// `C_WrapKeyAuthenticated`.
    fn C_WrapKeyAuthenticated is WrapKeyAuthenticated(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
        associated: *mut CK_BYTE,
        associated_len: CK_ULONG,
        wrapped: *mut CK_BYTE,
        wrapped_len: *mut CK_ULONG,
    ) |caller, provider| {
        let (wrapping, key) = (ObjectHandle(wrapping), ObjectHandle(key));
        let associated = (associated.cast_const(), associated_len);
        caller.transform(associated, (wrapped, wrapped_len), |associated, output| {
            caller.with_mechanism(mechanism, |mechanism| {
                let (token, session) = session(provider, handle)?;
                token.wrap_key_authenticated(session, mechanism, wrapping, key, associated, output)
            })
        })
    }

    /// `C_UnwrapKey`.
    fn C_UnwrapKey is UnwrapKey(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        unwrapping: CK_OBJECT_HANDLE,
        wrapped: *mut CK_BYTE,
        wrapped_len: CK_ULONG,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    ) |caller, provider| {
        let place = caller.place(key)?;
        let wrapped = caller.input(wrapped, wrapped_len)?;
        let template = caller.template(template, count)?;
        let key = caller.with_mechanism(mechanism, |mechanism| {
            let (token, session) = session(provider, handle)?;
            token.unwrap_key(session, mechanism, ObjectHandle(unwrapping), wrapped, &template)
        })?;
        place.put(key.0);
        Ok(())
    }

    /// `C_UnwrapKeyAuthenticated`.
    fn C_UnwrapKeyAuthenticated is UnwrapKeyAuthenticated(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        unwrapping: CK_OBJECT_HANDLE,
        wrapped: *mut CK_BYTE,
        wrapped_len: CK_ULONG,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        associated: *mut CK_BYTE,
        associated_len: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    ) |caller, provider| {
        let place = caller.place(key)?;
        let wrapped = caller.input(wrapped, wrapped_len)?;
        let associated = caller.input(associated, associated_len)?;
        let template = caller.template(template, count)?;
        let unwrapping = ObjectHandle(unwrapping);
        let key = caller.with_mechanism(mechanism, |mechanism| {
            let (token, session) = session(provider, handle)?;
            token.unwrap_key_authenticated(session, mechanism, unwrapping, wrapped, &template, associated)
        })?;
        place.put(key.0);
        Ok(())
    }

    /// `C_DeriveKey`. Mechanisms that answer in their parameter only are called with `key` NULL.
    fn C_DeriveKey is DeriveKey(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        base: CK_OBJECT_HANDLE,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    ) |caller, provider| {
        let template = caller.template(template, count)?;
        let derived = caller.with_mechanism(mechanism, |mechanism| {
            let (token, session) = session(provider, handle)?;
            token.derive_key(session, mechanism, ObjectHandle(base), &template, !key.is_null())
        })?;
        match derived {
            Some(derived) if !key.is_null() => caller.place(key)?.put(derived.0),
            _ => {}
        }
        Ok(())
    }

    /// `C_EncapsulateKey`. A size query makes no key, so that it needs no place for a handle.
    fn C_EncapsulateKey is EncapsulateKey(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        public: CK_OBJECT_HANDLE,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        ciphertext: *mut CK_BYTE,
        ciphertext_len: *mut CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    ) |caller, provider| {
        if key.is_null() && !ciphertext.is_null() {
            return Err(Rv::ARGUMENTS_BAD);
        }
        let template = caller.template(template, count)?;
        let mut made = None;
        caller.output(ciphertext, ciphertext_len, |output| {
            made = caller.with_mechanism(mechanism, |mechanism| {
                let (token, session) = session(provider, handle)?;
                token.encapsulate_key(session, mechanism, ObjectHandle(public), &template, output)
            })?;
            Ok(())
        })?;
        match made {
            Some(made) if !key.is_null() => caller.place(key)?.put(made.0),
            _ => {}
        }
        Ok(())
    }

    /// `C_DecapsulateKey`.
    fn C_DecapsulateKey is DecapsulateKey(
        handle: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        private: CK_OBJECT_HANDLE,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        ciphertext: *mut CK_BYTE,
        ciphertext_len: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    ) |caller, provider| {
        let place = caller.place(key)?;
        let ciphertext = caller.input(ciphertext, ciphertext_len)?;
        let template = caller.template(template, count)?;
        let key = caller.with_mechanism(mechanism, |mechanism| {
            let (token, session) = session(provider, handle)?;
            token.decapsulate_key(session, mechanism, ObjectHandle(private), &template, ciphertext)
        })?;
        place.put(key.0);
        Ok(())
    }
}
