// SPDX-License-Identifier: BSD-2-Clause

//! Where the machine keeps its libraries and programs.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where the dynamic linker looks: its built-in folders on the distributions, and those of
/// `/etc/ld.so.conf` (ld.so(8), ldconfig(8)).
pub fn library_folders() -> Vec<PathBuf> {
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let mut folders = Vec::new();
    for root in ["/lib", "/usr/lib", "/usr/local/lib"] {
        folders.push(PathBuf::from(root));
        folders.push(Path::new(root).join(&triplet));
        folders.push(PathBuf::from(format!("{root}64")));
    }
    linker_conf(Path::new("/etc/ld.so.conf"), &mut folders, 0);
    let mut seen = HashSet::new();
    folders.retain(|folder| fs::canonicalize(folder).is_ok_and(|real| seen.insert(real)));
    folders
}

/// How deep files that include files are followed.
const DEEPEST_INCLUDE: usize = 4;

fn linker_conf(path: &Path, folders: &mut Vec<PathBuf>, depth: usize) {
    let Ok(text) = fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(pattern) = line.strip_prefix("include ") {
            if depth < DEEPEST_INCLUDE {
                for included in glob(Path::new(pattern.trim())) {
                    linker_conf(&included, folders, depth + 1);
                }
            }
        } else if line.starts_with('/') {
            folders.push(PathBuf::from(line));
        }
    }
}

/// The files that `pattern` means, which may have one `*` in its last part.
fn glob(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let Some((start, end)) = name.split_once('*') else {
        return vec![pattern.to_owned()];
    };
    let folder = pattern.parent().unwrap_or(Path::new("/"));
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            name.len() >= start.len() + end.len()
                && name.starts_with(start.as_bytes())
                && name.ends_with(end.as_bytes())
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

/// The file that runs if `program` is started: itself if it names a folder, else the first
/// executable file of that name in `path`, the value of PATH.
pub fn program_file(program: &Path, path: &std::ffi::OsStr) -> Option<PathBuf> {
    let is_program = |file: &Path| {
        fs::metadata(file).is_ok_and(|data| data.is_file() && data.mode() & 0o111 != 0)
    };
    if program.components().count() > 1 || program.is_absolute() {
        return is_program(program).then(|| program.to_owned());
    }
    std::env::split_paths(path)
        .map(|folder| folder.join(program))
        .find(|file| is_program(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linker_configuration_is_followed_and_never_forever() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("ld.so.conf");
        let more = dir.path().join("more.conf");
        fs::write(
            &conf,
            format!(
                "# text\ninclude {}/*.conf\n/a/lib # x\n",
                dir.path().display()
            ),
        )
        .unwrap();
        fs::write(&more, "/b/lib\nrelative\n").unwrap();
        let mut folders = Vec::new();
        linker_conf(&more, &mut folders, 0);
        assert_eq!(folders, [Path::new("/b/lib")]);
        linker_conf(&conf, &mut folders, 0);
        assert!(folders.contains(&PathBuf::from("/a/lib")));
    }

    #[test]
    fn a_program_is_looked_for_as_a_shell_does() {
        let path = std::ffi::OsStr::new("/no/such:/usr/bin:/bin");
        let cat = program_file(Path::new("cat"), path).unwrap();
        assert!(cat.ends_with("cat") && cat.is_absolute());
        assert_eq!(program_file(Path::new("no-such-program"), path), None);
        assert_eq!(program_file(Path::new("/etc/passwd"), path), None);
        assert_eq!(program_file(&cat, path), Some(cat.clone()));
    }
}
