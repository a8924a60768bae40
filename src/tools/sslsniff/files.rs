// SPDX-License-Identifier: BSD-2-Clause

//! Files that plaintext is written to: readable by their owner alone, and never in place of another.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A file under way, and its name for messages.
#[derive(Debug)]
pub struct Output {
    /// The option that asked for it.
    option: &'static str,
    path: PathBuf,
}

impl Output {
    /// Makes a file that was not there before, with mode 0600. Symbolic links are not followed.
    ///
    /// # Errors
    /// [`Failure::Usage`], also if there is something of that name.
    pub fn create(option: &'static str, path: &Path) -> Result<(Self, BufWriter<File>), Failure> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|err| {
                let why = match err.kind() {
                    ErrorKind::AlreadyExists => {
                        "there is a file of that name, and it is not overwritten".to_owned()
                    }
                    _ => err.to_string(),
                };
                Failure::usage(format!("{option} {}: {why}", path.display()))
            })?;
        let output = Self {
            option,
            path: path.to_owned(),
        };
        Ok((output, BufWriter::with_capacity(1 << 16, file)))
    }

    /// `err` with the file's name.
    pub fn named(&self, err: &io::Error) -> io::Error {
        let text = format!("{} {}: {err}", self.option, self.path.display());
        io::Error::new(err.kind(), text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_its_owner_s_alone_and_none_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        Output::create("--pcap", &path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let err = Output::create("--pcap", &path).unwrap_err().to_string();
        assert!(
            err.contains("--pcap") && err.contains("not overwritten"),
            "{err}"
        );
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        assert!(Output::create("--har", &link).is_err());
        assert!(!dir.path().join("nowhere").exists());
    }
}
