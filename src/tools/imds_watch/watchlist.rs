// SPDX-License-Identifier: BSD-2-Clause

//! What a request is compared with in user space: the kinds of paths, the names of the service, and
//! the user's own rules.

use anyhow::Result;

use super::hosts::Hosts;
use super::paths::{Class, Targets};
use super::rules::{Rule, Rules, expression};

/// Compiled once, for all requests.
#[derive(Debug)]
pub struct Watchlist {
    classes: Targets,
    hosts: Hosts,
    rules: Vec<(Rule, Targets)>,
}

impl Watchlist {
    /// For these names and rules.
    ///
    /// # Errors
    /// If an expression is wrong; none that passed [`Rules::read`] is.
    pub fn new(hosts: Hosts, rules: &Rules) -> Result<Self> {
        let compiled = |rule: &Rule| {
            let patterns: Vec<_> = rule.paths.iter().map(|path| expression(path)).collect();
            Ok((rule.clone(), Targets::new(&patterns)?))
        };
        Ok(Self {
            classes: Targets::of_classes()?,
            hosts,
            rules: rules.list.iter().map(compiled).collect::<Result<_>>()?,
        })
    }

    /// What kind of target this is.
    pub fn classes(&self, target: &str) -> Vec<Class> {
        self.classes.classes(target)
    }

    /// Whether a Host header of this value is the service's.
    pub fn is_service(&self, host: &str) -> bool {
        self.hosts.is_service(host)
    }

    /// The places of the rules that a request has something of each of their lists of, endpoints
    /// aside. `paths` are the ways to read the one path; header names are compared without regard
    /// to case.
    pub fn rules(&self, method: Option<&str>, paths: &[&str], headers: &[String]) -> Vec<usize> {
        let fits = |(rule, targets): &(Rule, Targets)| {
            let method = rule.methods.is_empty()
                || method.is_some_and(|method| {
                    rule.methods
                        .iter()
                        .any(|one| one.eq_ignore_ascii_case(method))
                });
            let path =
                rule.paths.is_empty() || paths.iter().any(|path| !targets.matches(path).is_empty());
            let header = rule.headers.is_empty()
                || headers.iter().any(|name| {
                    rule.headers
                        .iter()
                        .any(|one| one.eq_ignore_ascii_case(name))
                });
            method && path && header
        };
        let all = self.rules.iter().enumerate();
        all.filter(|(_, one)| fits(one))
            .map(|(place, _)| place)
            .collect()
    }

    /// The rule at this place.
    pub fn rule(&self, place: usize) -> Option<&Rule> {
        self.rules.get(place).map(|(rule, _)| rule)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// For AWS, without rules.
    pub fn plain() -> &'static Watchlist {
        static PLAIN: std::sync::OnceLock<Watchlist> = std::sync::OnceLock::new();
        PLAIN.get_or_init(|| {
            let endpoints = vec!["169.254.169.254:80".parse().unwrap()];
            Watchlist::new(Hosts::new(&[], endpoints), &Rules::default()).unwrap()
        })
    }

    #[test]
    fn a_rule_wants_something_of_each_of_its_lists() {
        let rule = |paths: &[&str], headers: &[&str], methods: &[&str]| Rule {
            paths: paths.iter().map(|one| (*one).to_owned()).collect(),
            headers: headers.iter().map(|one| (*one).to_owned()).collect(),
            methods: methods.iter().map(|one| (*one).to_owned()).collect(),
            ..Rule::default()
        };
        let rules = Rules {
            list: vec![
                rule(&["/a/*", "/b"], &[], &[]),
                rule(&["/a/*"], &["x-debug"], &["GET", "PUT"]),
                rule(&[], &["x-debug"], &[]),
            ],
            ..Rules::default()
        };
        let list = Watchlist::new(Hosts::default(), &rules).unwrap();
        let debug = ["X-Debug".to_owned()];
        assert_eq!(list.rules(Some("GET"), &["/a/x"], &[]), [0]);
        assert_eq!(list.rules(Some("GET"), &["/c", "/a/x"], &debug), [0, 1, 2]);
        assert_eq!(list.rules(Some("HEAD"), &["/a/x"], &debug), [0, 2]);
        assert_eq!(list.rules(None, &["/c"], &debug), [2]);
    }
}
