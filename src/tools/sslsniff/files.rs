// SPDX-License-Identifier: BSD-2-Clause

//! Files that plaintext is written to: readable by their owner alone, and never in place of another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A file under way, and its name for messages. Until it is kept it goes with its value.
#[derive(Debug)]
pub struct Output {
    /// The option that asked for it.
    option: &'static str,
    path: PathBuf,
    /// Device and inode, unless it is to be kept.
    unused: Option<(u64, u64)>,
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
        let metadata = file.metadata().ok();
        let output = Self {
            option,
            path: path.to_owned(),
            unused: metadata.map(|metadata| (metadata.dev(), metadata.ino())),
        };
        Ok((output, BufWriter::with_capacity(1 << 16, file)))
    }

    /// There will be something in it.
    pub fn keep(&mut self) {
        self.unused = None;
    }

    /// `err` with the file's name.
    pub fn named(&self, err: &io::Error) -> io::Error {
        let text = format!("{} {}: {err}", self.option, self.path.display());
        io::Error::new(err.kind(), text)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Another of its name is another's.
        if let Some(id) = self.unused
            && let Ok(now) = fs::symlink_metadata(&self.path)
            && (now.dev(), now.ino()) == id
        {
            let _ = fs::remove_file(&self.path);
        }
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
        let (mut output, _) = Output::create("--pcap", &path).unwrap();
        output.keep();
        drop(output);
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

    #[test]
    fn a_file_that_is_not_used_goes_and_another_of_its_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        drop(Output::create("--har", &path).unwrap());
        assert!(!path.exists());
        let unused = Output::create("--har", &path).unwrap();
        let other = dir.path().join("b");
        fs::write(&other, "another").unwrap();
        fs::rename(other, &path).unwrap();
        drop(unused);
        assert!(path.exists());
    }
}
