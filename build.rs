// SPDX-License-Identifier: BSD-2-Clause

//! Compiles every `src/bpf/*.bpf.c` into a skeleton in `OUT_DIR`. It names no tool: a new program
//! is a new file.
//!
//! `CLANG` names the compiler; without it `clang` and then the versioned names of distributions
//! are tried.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use libbpf_cargo::SkeletonBuilder;

/// The oldest clang that the programs are compiled with in CI.
const OLDEST_CLANG: u32 = 14;
/// The newest versioned name that is looked for.
const NEWEST_CLANG: u32 = 25;

fn main() -> Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("no CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").context("no OUT_DIR")?);
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("no CARGO_CFG_TARGET_ARCH")?;
    let vmlinux = root.join("vmlinux").join(&arch);
    if !vmlinux.join("vmlinux.h").is_file() {
        bail!("no vmlinux/{arch}/vmlinux.h: ebpfkit is built for x86_64 and aarch64");
    }
    let bpf = root.join("src/bpf");
    for watched in [&bpf, &bpf.join("lib"), &vmlinux] {
        println!("cargo:rerun-if-changed={}", watched.display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CLANG");

    let clang = find_clang()?;
    let headers = out.join("headers");
    libbpf_headers(&headers.join("bpf"))?;
    for source in sources(&bpf)? {
        let name = source
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".bpf.c"))
            .with_context(|| format!("{} is not a name that rustc can use", source.display()))?;
        SkeletonBuilder::new()
            .source(&source)
            .clang(&clang)
            .clang_args(clang_args(&root, &vmlinux, &headers))
            .build_and_generate(out.join(format!("{name}.skel.rs")))
            .with_context(|| format!("cannot compile {}", source.display()))?;
    }
    Ok(())
}

/// Libbpf's headers, `bpf/bpf_helpers.h` and the like. libbpf-cargo has them, too, in a folder with
/// another name each time, and the programs' line information names it.
fn libbpf_headers(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in libbpf_rs::libbpf_sys::API_HEADERS {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The vmlinux folder goes in by `-isystem`: its declarations trip `-Wall -Werror`. Line information
/// names sources as if the repository were `/usr/src/ebpfkit`: two builds in different folders make
/// the same programs. None of the folders is in another, as clangs differ in which comes first.
fn clang_args(root: &Path, vmlinux: &Path, headers: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = ["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-mcpu=v3"]
        .iter()
        .map(OsString::from)
        .collect();
    for (folder, name) in [
        (root.join("src"), "src"),
        (root.join("vmlinux"), "vmlinux"),
        (headers.to_owned(), "headers"),
    ] {
        let mut prefix_map = OsString::from("-fdebug-prefix-map=");
        prefix_map.push(folder);
        prefix_map.push("=/usr/src/ebpfkit/");
        prefix_map.push(name);
        args.push(prefix_map);
    }
    args.push("-I".into());
    args.push(headers.into());
    args.push("-isystem".into());
    args.push(vmlinux.into());
    args
}

fn sources(bpf: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(bpf).with_context(|| format!("cannot read {}", bpf.display()))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".bpf.c") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn find_clang() -> Result<OsString> {
    if let Some(named) = env::var_os("CLANG").filter(|named| !named.is_empty()) {
        return Ok(named);
    }
    let versioned = (OLDEST_CLANG..=NEWEST_CLANG)
        .rev()
        .map(|version| format!("clang-{version}"));
    for name in std::iter::once("clang".to_owned()).chain(versioned) {
        if Command::new(&name)
            .arg("--version")
            .output()
            .is_ok_and(|out| out.status.success())
        {
            return Ok(name.into());
        }
    }
    bail!(
        "no clang found: install clang {OLDEST_CLANG} or newer (Debian, Ubuntu: apt install clang; \
         Fedora: dnf install clang; Arch: pacman -S clang), or name one in CLANG"
    )
}
