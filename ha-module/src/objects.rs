//! Objects, their attributes, and searches.

use cryptoki_sys::{CK_ATTRIBUTE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG};
use ha_token::{ObjectHandle, Rv};

use crate::caller::ulong;
use crate::guard::entry;
use crate::sessions::session;

entry! {
    /// `C_CreateObject`.
    fn C_CreateObject is CreateObject(
        handle: CK_SESSION_HANDLE,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        object: *mut CK_OBJECT_HANDLE,
    ) |caller, provider| {
        let place = caller.place(object)?;
        let template = caller.template(template, count)?;
        let (token, session) = session(provider, handle)?;
        place.put(token.create_object(session, &template)?.0);
        Ok(())
    }

    /// `C_CopyObject`.
    fn C_CopyObject is CopyObject(
        handle: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        copy: *mut CK_OBJECT_HANDLE,
    ) |caller, provider| {
        let place = caller.place(copy)?;
        let template = caller.template(template, count)?;
        let (token, session) = session(provider, handle)?;
        place.put(token.copy_object(session, ObjectHandle(object), &template)?.0);
        Ok(())
    }

    /// `C_DestroyObject`.
    fn C_DestroyObject is DestroyObject(
        handle: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
    ) |_caller, provider| {
        let (token, session) = session(provider, handle)?;
        token.destroy_object(session, ObjectHandle(object))
    }

    /// `C_GetObjectSize`.
    fn C_GetObjectSize is GetObjectSize(
        handle: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        size: *mut CK_ULONG,
    ) |caller, provider| {
        let place = caller.place(size)?;
        let (token, session) = session(provider, handle)?;
        place.put(token.object_size(session, ObjectHandle(object))?);
        Ok(())
    }

    /// `C_GetAttributeValue`.
    fn C_GetAttributeValue is GetAttributeValue(
        handle: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
    ) |caller, provider| {
        let types = caller.types(template, count)?;
        let (token, session) = session(provider, handle)?;
        let answers = token.get_attributes(session, ObjectHandle(object), &types)?;
        // One too many would be written past the template's end.
        if answers.len() != types.len() {
            return Err(Rv::GENERAL_ERROR);
        }
        caller.answer(template, &answers)
    }

    /// `C_SetAttributeValue`.
    fn C_SetAttributeValue is SetAttributeValue(
        handle: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
    ) |caller, provider| {
        let template = caller.template(template, count)?;
        let (token, session) = session(provider, handle)?;
        token.set_attributes(session, ObjectHandle(object), &template)
    }

    /// `C_FindObjectsInit`.
    fn C_FindObjectsInit is FindObjectsInit(
        handle: CK_SESSION_HANDLE,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
    ) |caller, provider| {
        let template = caller.template(template, count)?;
        let (token, session) = session(provider, handle)?;
        token.find_objects_init(session, &template)
    }

    /// `C_FindObjects`.
    fn C_FindObjects is FindObjects(
        handle: CK_SESSION_HANDLE,
        objects: *mut CK_OBJECT_HANDLE,
        max: CK_ULONG,
        count: *mut CK_ULONG,
    ) |caller, provider| {
        caller.place(objects)?;
        let place = caller.place(count)?;
        // More than memory can hold is a caller's way to say "all".
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(isize::MAX as usize / size_of::<CK_ULONG>());
        let (token, session) = session(provider, handle)?;
        let found = token.find_objects(session, max)?;
        if found.len() > max {
            return Err(Rv::GENERAL_ERROR);
        }
        let handles: Vec<CK_OBJECT_HANDLE> = found.iter().map(|object| object.0).collect();
        caller.array(&handles, objects)?;
        place.put(ulong(handles.len()));
        Ok(())
    }

    /// `C_FindObjectsFinal`.
    fn C_FindObjectsFinal is FindObjectsFinal(handle: CK_SESSION_HANDLE) |_caller, provider| {
        let (token, session) = session(provider, handle)?;
        token.find_objects_final(session)
    }
}
