// SPDX-License-Identifier: BSD-2-Clause

//! Files that are not probed.

use std::path::Path;

use serde::Serialize;

use super::event::is_zero;

/// A file that is not probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Its path.
    pub path: String,
    /// What the kernel says of it.
    pub reason: String,
}

impl Skipped {
    /// The file at `path`, left out for this reason.
    pub fn of(path: &Path, reason: &str) -> Self {
        Self {
            path: path.to_string_lossy().into_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// Files that are not probed: the first by name, as anybody can make there be many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Skips {
    /// As many as are named.
    #[serde(rename = "skipped")]
    pub named: Vec<Skipped>,
    /// The others.
    #[serde(rename = "skipped_more", skip_serializing_if = "is_zero")]
    pub more: u64,
}

/// Files that are named.
const MOST_SKIPPED: usize = 100;

impl Skips {
    /// Names `one`, or counts it.
    pub fn add(&mut self, one: Skipped) {
        if self.named.len() < MOST_SKIPPED {
            self.named.push(one);
        } else {
            self.more += 1;
        }
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.named.len() as u64 + self.more
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_files_that_are_not_probed_the_first_are_named_and_the_others_counted() {
        let mut skips = Skips::default();
        assert_eq!(
            serde_json::to_value(&skips).unwrap(),
            serde_json::json!({"skipped": []})
        );
        for number in 0..MOST_SKIPPED + 3 {
            skips.add(Skipped::of(Path::new(&number.to_string()), "why"));
        }
        let value = serde_json::to_value(&skips).unwrap();
        assert_eq!(value["skipped"].as_array().unwrap().len(), MOST_SKIPPED);
        assert_eq!(
            value["skipped"][1],
            serde_json::json!({"path": "1", "reason": "why"})
        );
        assert_eq!(
            (&value["skipped_more"], skips.len()),
            (&serde_json::json!(3), 103)
        );
    }
}
