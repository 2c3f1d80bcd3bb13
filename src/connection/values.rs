//! A typed map that is only ever added to, so that it can lend what it holds without a lock.

use std::{any::Any, fmt, sync::OnceLock};

type Value = Box<dyn Any + Send + Sync>;

/// A list of values, one of each type. Allocates nothing until used.
#[derive(Default)]
pub(super) struct Values {
    first: OnceLock<Box<Node>>,
}

struct Node {
    value: Value,
    next: OnceLock<Box<Self>>,
}

impl Values {
    pub(super) fn get<T: Any>(&self) -> Option<&T> {
        let mut slot = &self.first;
        while let Some(node) = slot.get() {
            if let Some(value) = node.value.downcast_ref() {
                return Some(value);
            }
            slot = &node.next;
        }
        None
    }

    /// Hands the value back if there is one of its type.
    pub(super) fn insert<T: Any + Send + Sync>(&self, value: T) -> Result<(), T> {
        let mut node = Box::new(Node {
            value: Box::new(value),
            next: OnceLock::new(),
        });
        let mut slot = &self.first;
        loop {
            // The first to set the last slot wins it. The others check what is there.
            match slot.set(node) {
                Ok(()) => return Ok(()),
                Err(refused) => node = refused,
            }
            let Some(there) = slot.get() else { continue };
            if there.value.is::<T>() {
                return match node.value.downcast() {
                    Ok(value) => Err(*value),
                    Err(_) => Ok(()),
                };
            }
            slot = &there.next;
        }
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_one_value_of_each_type() {
        let values = Values::default();
        assert_eq!(values.get::<u8>(), None);
        assert_eq!(values.insert(1_u8), Ok(()));
        assert_eq!(values.insert("text"), Ok(()));
        assert_eq!(values.insert(2_u8), Err(2));
        assert_eq!(values.get::<u8>(), Some(&1));
        assert_eq!(values.get::<&str>(), Some(&"text"));
    }
}
