// SPDX-License-Identifier: BSD-2-Clause

//! The libraries that records name by a number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::function::Function;

/// The paths of the libraries and what is in them, by their number in records. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Mutex<HashMap<u32, Name>>>);

#[derive(Debug)]
struct Name {
    path: Arc<str>,
    functions: Vec<Function>,
}

impl Names {
    /// The path of library `number`, in which `function` was called. Zero is unknown, unless only one
    /// library has that function.
    pub fn get(&self, number: u32, function: Function) -> Option<Arc<str>> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if number > 0 {
            return names.get(&number).map(|name| Arc::clone(&name.path));
        }
        let mut having = names
            .values()
            .filter(|name| name.functions.contains(&function));
        match (having.next(), having.next()) {
            (Some(only), None) => Some(Arc::clone(&only.path)),
            _ => None,
        }
    }

    /// Gives `number` a path.
    pub fn set(&self, number: u32, path: &str, functions: Vec<Function>) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let path = path.into();
        names.insert(number, Name { path, functions });
    }

    /// Takes the path of `number` away.
    pub(super) fn remove(&self, number: u32) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_a_number_is_known_by_what_it_alone_has() {
        let names = Names::default();
        names.set(1, "/a", vec![Function::Read, Function::Write]);
        names.set(2, "/b", vec![Function::GnutlsRecv]);
        assert_eq!(names.get(2, Function::Read).as_deref(), Some("/b"));
        assert_eq!(names.get(0, Function::Read).as_deref(), Some("/a"));
        assert_eq!(names.get(0, Function::GnutlsRecv).as_deref(), Some("/b"));
        assert_eq!(names.get(0, Function::Free), None);
        names.set(3, "/c", vec![Function::Read]);
        assert_eq!(names.get(0, Function::Read), None);
        assert_eq!(names.get(4, Function::Read), None);
    }
}
