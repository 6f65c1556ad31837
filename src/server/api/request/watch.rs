//! Which fields of a request's objects nothing looks for, at any depth.

use std::cell::RefCell;

use serde_json::Value;

use super::close;
use super::fault::{Step, path, shortened};
use super::reader::FLATTEN_PREFIX;
use super::unknown::Field;

/// Follows a [`Reader`](super::reader::Reader): objects that are read as structs are compared with what
/// their structs declare. Values that are read whole, such as schemas, are not looked into.
#[derive(Debug, Default)]
pub(super) struct Watch(RefCell<Watched>);

#[derive(Debug, Default)]
struct Watched {
    /// The values that are being read, outermost first.
    open: Vec<Open>,
    /// Fields that nothing looked for, although they ask for something.
    found: Vec<Field>,
}

/// A value that is being read.
#[derive(Debug)]
struct Open {
    /// From the value around it; `None` of the outermost.
    step: Option<Step>,
    /// The fields of each struct that reads it: several may read one object.
    declared: Vec<&'static [&'static str]>,
}

impl Watch {
    /// A value is read from now on.
    pub(super) fn enter(&self, step: Option<Step>) {
        let declared = Vec::new();
        self.0.borrow_mut().open.push(Open { step, declared });
    }

    /// The fields that a struct looks for in the value that is read now.
    pub(super) fn look_for(&self, fields: &'static [&'static str]) {
        if let Some(last) = self.0.borrow_mut().open.last_mut() {
            last.declared.push(fields);
        }
    }

    /// The value that was entered last has been read. Fields that are `null` ask for nothing.
    pub(super) fn leave(&self, value: &Value) {
        let mut watched = self.0.borrow_mut();
        let Watched { open, found } = &mut *watched;
        if let (Some(last), Value::Object(fields)) = (open.last(), value)
            && !last.declared.is_empty()
        {
            let declared = || last.declared.iter().flat_map(|of| of.iter().copied());
            let known = |name: &str| declared().any(|field| field == name);
            let fields = fields.iter();
            let unknown = fields.filter(|(name, value)| !value.is_null() && !known(name));
            for (name, _) in unknown {
                let name = shortened(name);
                let steps = open.iter().filter_map(|value| value.step.as_ref());
                let place = path(steps);
                // Only the first is told with it: a body may have any number.
                let is_public = |field: &&str| !field.starts_with(FLATTEN_PREFIX);
                let close = found.is_empty().then(|| {
                    let known: Vec<&'static str> = declared().filter(is_public).collect();
                    close::to(&name, &known)
                });
                let close = close.flatten();
                found.push(Field { place, name, close });
            }
        }
        open.pop();
    }

    /// What was found: the request's own fields first, then in the order in which the values ended.
    pub(super) fn found(&self) -> Vec<Field> {
        let mut found = std::mem::take(&mut self.0.borrow_mut().found);
        found.sort_by_key(|field| !field.place.is_empty());
        found
    }
}
