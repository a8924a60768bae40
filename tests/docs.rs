// SPDX-License-Identifier: BSD-2-Clause

//! What the documents, manual pages, units and recipes say is true of the program: links lead
//! somewhere, and each command line of `ebpfkit` that they show is one that it understands.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, Parser as _};
use ebpfkit::cli::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// Files below `folder` for which `wanted` holds, without what is built or brought in.
fn files(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !["target", "vendor", "build", ".git"].contains(&&*name) {
                found.extend(files(&path, wanted));
            }
        } else if wanted(&path) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn documents() -> Vec<PathBuf> {
    let found = files(root(), &|path| {
        path.extension().is_some_and(|end| end == "md")
    });
    assert!(found.len() >= 5, "{found:?}");
    found
}

/// The lines of a document in Markdown, each with whether it is code.
fn lines(text: &str) -> Vec<(bool, &str)> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            found.push((true, ""));
        } else {
            found.push((fenced || line.starts_with("    "), line));
        }
    }
    assert!(!fenced, "a block of code has no end");
    found
}

/// The anchors that a forge makes of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    lines(text)
        .into_iter()
        .filter(|(code, line)| !code && line.starts_with('#'))
        .map(|(_, line)| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// Where the links in a line of prose lead.
fn links(line: &str) -> Vec<String> {
    // Code in the line has no links.
    let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
    prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

#[test]
fn links_lead_to_files_and_headings_that_are_there() {
    let mut dead = Vec::new();
    let mut followed = 0;
    for document in documents() {
        let text = read(&document);
        for (code, line) in lines(&text) {
            for target in if code { Vec::new() } else { links(line) } {
                if target.contains("://") {
                    continue;
                }
                followed += 1;
                let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
                let file = match path {
                    "" => document.clone(),
                    _ => document.with_file_name("").join(path),
                };
                let there =
                    file.exists() && (anchor.is_empty() || anchors(&read(&file)).contains(anchor));
                if !there {
                    dead.push(format!("{}: {target}", document.display()));
                }
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
    assert!(followed >= 3, "only {followed} links found");
}

/// Lines with those that a backslash continues.
fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in lines {
        let (text, more) = match line.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (line, false),
        };
        match found.last_mut().filter(|_| goes_on) {
            Some(last) => last.push_str(text.trim_start()),
            None => found.push(text.trim_start().to_owned()),
        }
        goes_on = more;
    }
    found
}

/// The words of a command, as a shell splits it, up to what redirects or ends it.
fn words(command: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut quote = None;
    for c in command.chars() {
        match quote {
            Some(end) if c == end => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == ' ' => found.push(String::new()),
            _ => found.last_mut().expect("a word").push(c),
        }
    }
    found.retain(|word| !word.is_empty());
    let ends = |word: &String| {
        ["|", "&", "&&", ";", "#"].contains(&word.as_str())
            || word.contains('>')
            || word.contains(';')
    };
    let end = found.iter().position(ends).unwrap_or(found.len());
    found.truncate(end);
    found
}

/// The words from `ebpfkit` on, if a line of code calls it, alone or by way of what gives it
/// privileges.
fn called(line: &str) -> Option<Vec<String>> {
    let words = words(line.strip_prefix("$ ").unwrap_or(line));
    let program = |word: &String| word == "ebpfkit" || word.ends_with("/bin/ebpfkit");
    let first = words.first()?;
    if !program(first) && !["sudo", "setpriv", "nsenter"].contains(&first.as_str()) {
        return None;
    }
    let at = words.iter().position(program)?;
    // A synopsis, and what stands for something else, is no command.
    let words = words[at..].to_vec();
    let whole = words.join(" ");
    (!whole.contains(['…', '[', '<'])).then_some(words)
}

/// Commands, each with the file that has it.
type Commands = Vec<(PathBuf, Vec<String>)>;

fn understood(commands: &Commands, at_least: usize) {
    let mut wrong = Vec::new();
    for (file, words) in commands {
        let mut words = words.clone();
        "ebpfkit".clone_into(&mut words[0]);
        if let Err(err) = Cli::try_parse_from(&words)
            && err.use_stderr()
        {
            wrong.push(format!("{}: {}\n{err}", file.display(), words.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        commands.len() >= at_least,
        "only {} commands found",
        commands.len()
    );
}

#[test]
fn commands_in_documents_are_understood() {
    let mut commands = Commands::new();
    for document in documents() {
        let text = read(&document);
        let code = lines(&text)
            .into_iter()
            .map(|(code, line)| if code { line } else { "" });
        for line in joined(code) {
            commands.extend(called(&line).map(|words| (document.clone(), words)));
        }
    }
    understood(&commands, 5);
}

#[test]
fn words_of_make_and_scripts_in_documents_are_there() {
    let makefile = read(&root().join("Makefile"));
    let mut missing = Vec::new();
    let mut found = 0;
    for document in documents() {
        for (code, line) in lines(&read(&document)) {
            let line = line.trim().trim_start_matches("$ ");
            let line = line.strip_prefix("sudo ").unwrap_or(line);
            let Some(words) = code.then(|| words(line)).filter(|words| !words.is_empty()) else {
                continue;
            };
            let there = match words[0].as_str() {
                "make" => words[1..]
                    .iter()
                    .filter(|word| !word.contains('='))
                    .all(|word| makefile.contains(&format!("\n{word}:"))),
                script if script.starts_with("packaging/") || script.starts_with("tests/") => {
                    root().join(script).is_file()
                }
                _ => continue,
            };
            found += 1;
            if !there {
                missing.push(format!("{}: {line}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(found >= 15, "only {found} found");
}

fn written_pages() -> Vec<PathBuf> {
    files(&root().join("docs/man"), &|_| true)
}

#[test]
fn examples_in_manual_pages_are_understood() {
    let mut commands = Commands::new();
    for page in written_pages() {
        let text = read(&page).replace("\\-", "-").replace("\\e", "\\");
        let mut example = false;
        let code = text.lines().map(|line| {
            if [".EX", ".EE"].contains(&line) {
                example = line == ".EX";
                ""
            } else if example {
                line
            } else {
                ""
            }
        });
        for line in joined(code) {
            commands.extend(called(&line).map(|words| (page.clone(), words)));
        }
    }
    understood(&commands, 8);
}

/// Long options of a command and those below it.
fn options(command: &clap::Command, into: &mut BTreeSet<String>) {
    into.extend(
        command
            .get_arguments()
            .filter_map(clap::Arg::get_long)
            .map(str::to_owned),
    );
    for below in command.get_subcommands() {
        options(below, into);
    }
}

#[test]
fn options_that_manual_pages_speak_of_are_there() {
    let command = Cli::command();
    for page in written_pages() {
        let stem = page.file_stem().unwrap_or_default().to_string_lossy();
        let tool = stem.strip_prefix("ebpfkit-").unwrap_or_default();
        let mut known = BTreeSet::from(["help".to_owned()]);
        match command.find_subcommand(tool.split('.').next().unwrap_or_default()) {
            Some(tool) => options(tool, &mut known),
            None => options(&command, &mut known),
        }
        let mut example = false;
        for line in read(&page).lines() {
            if [".EX", ".EE"].contains(&line) {
                example = line == ".EX";
            }
            for part in line.split("\\-\\-").skip(1).filter(|_| !example) {
                let name: String = part
                    .replace("\\-", "-")
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                    .collect();
                assert!(
                    name.is_empty() || known.contains(&name),
                    "{}: --{name}",
                    page.display()
                );
            }
        }
    }
}

/// `$NAME` in a unit's command, from the file of settings that the unit names.
fn settings(path: &str) -> Vec<(String, String)> {
    let name = Path::new(path).file_name().expect("a file");
    read(&root().join("packaging/config").join(name))
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (format!("${key}"), value.to_owned()))
        .collect()
}

#[test]
fn commands_in_units_are_understood() {
    let mut commands = Commands::new();
    for unit in files(&root().join("packaging/systemd"), &|path| {
        path.extension().is_some_and(|end| end == "service")
    }) {
        let text = read(&unit);
        let value = |key: &'static str| text.lines().filter_map(move |line| line.strip_prefix(key));
        let settings: Vec<_> = value("EnvironmentFile=").flat_map(settings).collect();
        for start in value("Exec").filter_map(|line| line.split_once('=')) {
            let words = words(start.1).into_iter().flat_map(|word| {
                match settings.iter().find(|(name, _)| *name == word) {
                    Some((_, value)) => self::words(value),
                    None => vec![word],
                }
            });
            let words: Vec<_> = words
                .skip_while(|word| !word.ends_with("/bin/ebpfkit"))
                .collect();
            if !words.is_empty() {
                commands.push((unit.clone(), words));
            }
        }
    }
    understood(&commands, 3);
}

#[test]
fn arguments_of_pods_are_understood() {
    let mut commands = Commands::new();
    for manifest in files(&root().join("packaging/kubernetes"), &|_| true) {
        for line in read(&manifest).lines() {
            let line = line.trim();
            let Some(list) = ["args: [", "value: ["]
                .iter()
                .find_map(|start| line.strip_prefix(start))
            else {
                continue;
            };
            let list = list.strip_suffix(']').expect("a list on one line");
            let mut words = vec!["ebpfkit".to_owned()];
            words.extend(
                list.split(", ")
                    .map(|word| word.trim_matches('"').to_owned()),
            );
            commands.push((manifest.clone(), words));
        }
    }
    understood(&commands, 3);
}

#[test]
fn a_wrong_command_would_be_noticed() {
    let line =
        called("$ sudo -u nobody ebpfkit tc-guard run --no-such-option > file").expect("a call");
    assert_eq!(line, ["ebpfkit", "tc-guard", "run", "--no-such-option"]);
    assert!(Cli::try_parse_from(line).is_err());
    assert_eq!(called("ebpfkit: tc-guard: ready"), None);
    assert_eq!(joined(["a \\", "   b", "c"].into_iter()), ["a b", "c"]);
    assert_eq!(links("[a](b.md#c) `[d](e)` [f](g)"), ["b.md#c", "g"]);
    assert!(anchors("# It's *here*, now").contains("its-here-now"));
}

/// The words in backquotes after "expected one of", in what the guard says of a wrong policy.
fn expected_in(policy: &str) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("policy.toml");
    fs::write(&file, policy).expect("it is written");
    let output = assert_cmd::Command::cargo_bin("ebpfkit")
        .expect("the binary")
        .args(["tc-guard", "run", "--check-config", "--config"])
        .arg(&file)
        .output()
        .expect("it runs");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    let (_, listed) = said.split_once("expected one of").expect("a list");
    let words = listed.split('`').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

#[test]
fn the_policy_s_page_has_every_field_and_no_other() {
    let page = read(&root().join("docs/man/ebpfkit-tc-guard.toml.5")).replace("\\-", "-");
    let section = |from: &str, to: &str| -> BTreeSet<String> {
        let (_, rest) = page.split_once(from).expect("the section");
        let (text, _) = rest.split_once(to).expect("its end");
        text.lines()
            .filter_map(|line| line.strip_prefix("\\fB")?.split_once("\\fR = "))
            .map(|(name, _)| name.to_owned())
            .collect()
    };
    let known = |policy| expected_in(policy).into_iter().collect::<BTreeSet<_>>();
    let mut for_all = section(".SH FOR ALL RULES", ".SH RULES");
    for_all.insert("rule".to_owned());
    assert_eq!(for_all, known("nosuch = 1\n"));
    assert_eq!(
        section(".SH RULES", ".SH FILES"),
        known("[[rule]]\nnosuch = 1\n")
    );
}

#[test]
fn policies_in_manual_pages_and_packages_are_good() {
    let page = read(&root().join("docs/man/ebpfkit-tc-guard.toml.5")).replace("\\-", "-");
    let (_, example) = page.split_once("\n.EX\n").expect("an example");
    let (example, _) = example.split_once(".EE\n").expect("its end");
    let installed = read(&root().join("packaging/config/tc-guard.toml"));
    let folder = tempfile::tempdir().expect("a folder");
    for policy in [example, &installed] {
        let file = folder.path().join("policy.toml");
        fs::write(&file, policy).expect("it is written");
        assert_cmd::Command::cargo_bin("ebpfkit")
            .expect("the binary")
            .args(["tc-guard", "run", "--check-config", "--config"])
            .arg(&file)
            .assert()
            .success();
    }
}

/// Names of tests in a document: words in backticks that are too long for anything else.
fn named_tests(text: &str) -> BTreeSet<&str> {
    let code = text.split('`').skip(1).step_by(2);
    code.filter(|word| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        word.bytes().all(plain) && word.matches('_').count() >= 3
    })
    .collect()
}

#[test]
fn tests_that_the_threat_model_names_are_there() {
    let model = read(&root().join("docs/threat-model.md"));
    let named = named_tests(&model);
    assert!(named.len() >= 60, "{named:?}");
    let sources = files(root(), &|path| {
        path.extension().is_some_and(|end| end == "rs")
    });
    let sources: Vec<_> = sources.iter().map(|path| read(path)).collect();
    for name in named {
        let test = format!("#[test]\n    fn {name}()");
        let there = |source: &String| {
            let source = source.replace("#[test]\nfn ", "#[test]\n    fn ");
            source.contains(&test)
        };
        assert!(sources.iter().any(there), "there is no test {name}");
    }
}

/// Each row of the tables of what is stopped and of what the kernel shows has a test.
#[test]
fn every_row_of_the_threat_model_that_is_to_have_a_test_has_one() {
    let model = read(&root().join("docs/threat-model.md"));
    let mut rows = 0;
    for heading in ["### It stops", "### What the kernel shows"] {
        let (_, section) = model.split_once(heading).expect(heading);
        let section = section.split("\n#").next().unwrap_or_default();
        let table = section.lines().filter(|line| line.starts_with('|'));
        for row in table.skip(2) {
            rows += 1;
            assert!(!named_tests(row).is_empty(), "no test is named: {row}");
        }
    }
    assert!(rows >= 50, "{rows}");
}
