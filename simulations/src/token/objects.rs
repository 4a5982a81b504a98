//! Objects made, copied, changed, destroyed, read and found.

use std::collections::VecDeque;

use ha_token::{
    Attribute, AttributeType, Fetched, ObjectHandle, Result, Rv, SessionHandle, Template, Ulong, ck,
};

use super::object::{Make, Object};
use super::operation::Operation;
use super::state::{Call, Place, User};

/// More attributes in a template than SoftHSM takes.
const MOST: usize = 32;

/// What a template says of the object that it makes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outline {
    pub(super) class: Ulong,
    /// `CKA_KEY_TYPE` or `CKA_CERTIFICATE_TYPE`.
    pub(super) sort: Ulong,
    pub(super) on_token: bool,
    pub(super) private: bool,
}

/// The last attribute of its type, where it has that width.
fn last<T>(
    template: &Template,
    kind: AttributeType,
    read: impl Fn(&ha_token::Value) -> Option<T>,
) -> Option<T> {
    template.iter().filter(|a| a.kind == kind).filter_map(|a| read(&a.value)).next_back()
}

impl Outline {
    /// Of a template that must say what it makes.
    pub(super) fn of(template: &Template) -> Result<Self> {
        let class = last(template, ck::CKA_CLASS, |v| v.as_ulong()).ok_or(Rv::TEMPLATE_INCOMPLETE)?;
        let sort = match class {
            ck::CKO_CERTIFICATE => last(template, ck::CKA_CERTIFICATE_TYPE, |v| v.as_ulong()),
            _ => last(template, ck::CKA_KEY_TYPE, |v| v.as_ulong()),
        };
        let needed = matches!(
            class,
            ck::CKO_PUBLIC_KEY | ck::CKO_PRIVATE_KEY | ck::CKO_SECRET_KEY | ck::CKO_CERTIFICATE
        );
        if needed && sort.is_none() {
            return Err(Rv::TEMPLATE_INCOMPLETE);
        }
        Ok(Outline::or(template, class, sort.unwrap_or(ck::CKK_RSA)))
    }

    /// Of a template that need not: with these in place of what it leaves out.
    pub(super) fn or(template: &Template, class: Ulong, sort: Ulong) -> Self {
        let class = last(template, ck::CKA_CLASS, |v| v.as_ulong()).unwrap_or(class);
        let public = matches!(class, ck::CKO_PUBLIC_KEY | ck::CKO_CERTIFICATE);
        Outline {
            class,
            sort: match class {
                ck::CKO_CERTIFICATE => sort,
                _ => last(template, ck::CKA_KEY_TYPE, |v| v.as_ulong()).unwrap_or(sort),
            },
            on_token: last(template, ck::CKA_TOKEN, |v| v.as_bool()).unwrap_or(false),
            private: last(template, ck::CKA_PRIVATE, |v| v.as_bool()).unwrap_or(!public),
        }
    }

    /// The template that the object is made with: what it is in front, once.
    pub(super) fn template(&self, given: &Template, left_out: &[AttributeType]) -> Result<Template> {
        if given.len() > MOST - 4 {
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        let own = [ck::CKA_CLASS, ck::CKA_TOKEN, ck::CKA_PRIVATE, ck::CKA_KEY_TYPE];
        let mut template = vec![
            Attribute::ulong(ck::CKA_CLASS, self.class),
            Attribute::bool(ck::CKA_TOKEN, self.on_token),
            Attribute::bool(ck::CKA_PRIVATE, self.private),
            Attribute::ulong(ck::CKA_KEY_TYPE, self.sort),
        ];
        let rest = given.iter().filter(|a| !own.contains(&a.kind) && !left_out.contains(&a.kind));
        template.extend(rest.cloned());
        Ok(template)
    }
}

impl Call<'_> {
    /// Makes an object of a template and, with `finish`, of what the template does not say.
    pub(super) fn make(
        &mut self,
        session: SessionHandle,
        template: &Template,
        make: Make,
        finish: impl FnOnce(&mut Object) -> Result<()>,
    ) -> Result<ObjectHandle> {
        let outline = Outline::of(template)?;
        self.may_write(session, outline.on_token, outline.private)?;
        if template.len() > MOST {
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        let fresh =
            Object::new(outline.class, outline.sort, self.profile).ok_or(Rv::ATTRIBUTE_VALUE_INVALID)?;
        if outline.on_token {
            self.may_store()?;
        }
        let mut ordered = template.clone();
        // A check value is compared with the value, which must be there by then.
        ordered.sort_by_key(|a| a.kind == ck::CKA_CHECK_VALUE);
        let mut object = fresh.clone();
        let by_so = self.own.login == Some(User::So);
        if let Err(rv) = object.save(&ordered, make, by_so, self.profile) {
            if self.profile.leaves_ghosts {
                // Only what is in a file goes back to what it was, and not where something was missing only.
                let undone = outline.on_token && rv != Rv::TEMPLATE_INCOMPLETE;
                let ghost = if undone { fresh } else { object };
                _ = self.add(session, outline.on_token, outline.private, ghost);
            }
            return Err(rv);
        }
        if self.profile.unique_id {
            object.put(Attribute::bytes(ck::CKA_UNIQUE_ID, self.unique_id()));
        }
        finish(&mut object)?;
        let place = self.add(session, outline.on_token, outline.private, object)?;
        Ok(self.own.handle(self.profile, place))
    }

    fn unique_id(&mut self) -> Vec<u8> {
        format!("{:016x}{:016x}", self.store.random.draw(), self.store.random.draw()).into_bytes()
    }

    pub(super) fn create_object(
        &mut self,
        session: SessionHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.open(session)?;
        self.make(session, template, Make::Create, |object| {
            if object.get(ck::CKA_LOCAL).is_some() {
                object.put(Attribute::bool(ck::CKA_LOCAL, false));
            }
            for kind in [ck::CKA_ALWAYS_SENSITIVE, ck::CKA_NEVER_EXTRACTABLE] {
                if object.get(kind).is_some() {
                    object.put(Attribute::bool(kind, false));
                }
            }
            Ok(())
        })
    }

    pub(super) fn copy_object(
        &mut self,
        session: SessionHandle,
        handle: ObjectHandle,
        template: &Template,
    ) -> Result<ObjectHandle> {
        self.open(session)?;
        let (place, object) = self.object(handle).ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        self.may_read(object.is_private())?;
        if !object.flag_or_true(ck::CKA_COPYABLE) {
            return Err(Rv::ACTION_PROHIBITED);
        }
        let was_private = object.is_private();
        let on_token =
            last(template, ck::CKA_TOKEN, |v| v.as_bool()).unwrap_or(matches!(place, Place::Token(_)));
        let private = last(template, ck::CKA_PRIVATE, |v| v.as_bool()).unwrap_or(was_private);
        if was_private && !private {
            return Err(Rv::TEMPLATE_INCONSISTENT);
        }
        self.may_write(session, on_token, private)?;
        let mut copy = object.clone();
        let by_so = self.own.login == Some(User::So);
        copy.save(template, Make::Copy, by_so, self.profile)?;
        if self.profile.unique_id {
            copy.put(Attribute::bytes(ck::CKA_UNIQUE_ID, self.unique_id()));
        }
        let place = self.add(session, on_token, private, copy)?;
        Ok(self.own.handle(self.profile, place))
    }

    pub(super) fn destroy_object(&mut self, session: SessionHandle, handle: ObjectHandle) -> Result<()> {
        self.open(session)?;
        let (place, object) = self.object(handle).ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        self.may_write(session, object.flag(ck::CKA_TOKEN), object.is_private())?;
        if !object.flag_or_true(ck::CKA_DESTROYABLE) {
            return Err(Rv::ACTION_PROHIBITED);
        }
        self.remove(place)
    }

    pub(super) fn object_size(&self, session: SessionHandle, handle: ObjectHandle) -> Result<Ulong> {
        self.open(session)?;
        self.object(handle).ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        Ok(ck::CK_UNAVAILABLE_INFORMATION)
    }

    pub(super) fn get_attributes(
        &self,
        session: SessionHandle,
        handle: ObjectHandle,
        types: &[AttributeType],
    ) -> Result<Vec<Fetched>> {
        self.open(session)?;
        let (_, object) = self.object(handle).ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        // The standard does not let this function say that nobody is logged in.
        self.may_read(object.is_private()).map_err(|_| Rv::GENERAL_ERROR)?;
        if types.iter().any(|kind| object.trips(*kind, self.profile)) {
            return Err(Rv::GENERAL_ERROR);
        }
        Ok(types.iter().map(|kind| object.fetch(*kind)).collect())
    }

    pub(super) fn set_attributes(
        &mut self,
        session: SessionHandle,
        handle: ObjectHandle,
        template: &Template,
    ) -> Result<()> {
        self.open(session)?;
        let (place, object) = self.object(handle).ok_or(Rv::OBJECT_HANDLE_INVALID)?;
        self.may_write(session, object.flag(ck::CKA_TOKEN), object.is_private())?;
        if !object.flag_or_true(ck::CKA_MODIFIABLE) {
            return Err(Rv::ACTION_PROHIBITED);
        }
        let mut changed = object.clone();
        let saved = changed.save(template, Make::Set, self.own.login == Some(User::So), self.profile);
        match (place, &saved) {
            // Only what is in a file goes back to what it was.
            (Place::Session(_), Err(_)) if self.profile.leaves_ghosts => self.replace(place, changed)?,
            (_, Err(_)) => {}
            (_, Ok(())) => self.replace(place, changed)?,
        }
        saved
    }

    pub(super) fn find_objects_init(&mut self, session: SessionHandle, template: &Template) -> Result<()> {
        if self.session(session)?.operation.is_some() {
            return Err(Rv::OPERATION_ACTIVE);
        }
        let mut found = Vec::new();
        for place in self.places() {
            let Some(object) = self.at(place).filter(|o| self.may_read(o.is_private()).is_ok()) else {
                continue;
            };
            match object.matches(template, self.profile) {
                Ok(true) => found.push(place),
                Ok(false) => {}
                Err(rv) => {
                    // The search has begun all the same, and must be ended.
                    self.session(session)?.operation = Some(Operation::Find(VecDeque::new()));
                    return Err(rv);
                }
            }
        }
        let mut handles: Vec<ObjectHandle> =
            found.into_iter().map(|place| self.own.handle(self.profile, place)).collect();
        handles.sort();
        let session = self.session(session)?;
        session.operation = Some(Operation::Find(handles.into()));
        session.wants_login = false;
        Ok(())
    }

    pub(super) fn find_objects(&mut self, session: SessionHandle, max: usize) -> Result<Vec<ObjectHandle>> {
        match &mut self.session(session)?.operation {
            Some(Operation::Find(left)) => Ok(left.drain(..max.min(left.len())).collect()),
            _ => Err(Rv::OPERATION_NOT_INITIALIZED),
        }
    }

    pub(super) fn find_objects_final(&mut self, session: SessionHandle) -> Result<()> {
        let session = self.session(session)?;
        match session.operation {
            Some(Operation::Find(_)) => {
                session.operation = None;
                Ok(())
            }
            _ => Err(Rv::OPERATION_NOT_INITIALIZED),
        }
    }

    /// The number that the template gives, where it must be one: the last, if there are several.
    pub(super) fn given_number(template: &Template, kind: AttributeType) -> Result<Ulong> {
        let given = template.iter().filter(|a| a.kind == kind);
        given.map(|a| a.value.as_ulong().ok_or(Rv::ATTRIBUTE_VALUE_INVALID)).try_fold(0, |_, n| n)
    }

    /// The bytes that the template gives last.
    pub(super) fn given_bytes(template: &Template, kind: AttributeType) -> Option<&[u8]> {
        template.iter().filter(|a| a.kind == kind).filter_map(|a| a.value.as_bytes()).next_back()
    }
}
