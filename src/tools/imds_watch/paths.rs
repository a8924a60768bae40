// SPDX-License-Identifier: BSD-2-Clause

//! The paths that hand out secrets, those that hand out a session token, and those that no client
//! should ask for any more: one list, from which both the scanner in the kernel and the check in
//! user space are made.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

/// Path segments that stand in the paths which hand out credentials, and in no others. A path counts
/// wherever in it the segment is, and without regard to case: the list says what is secret, not how
/// a cloud or a proxy before it nests it.
/// Regular expressions; sources are the pages named in [`crate::metadata::CLOUDS`].
const CREDENTIALS: &[&str] = &[
    // AWS below iam/, Alibaba below ram/, Tencent below cam/, there of roles of services, too.
    "security-credentials",
    "service-role-security-credentials",
    "identity-credentials",
    // AWS below dynamic/; IBM.
    "instance-identity",
    "instance_identity",
    "iam_token",
    // Azure's signed document.
    "attested",
    // Azure's and IBM's first segment, Oracle's second, Google's last.
    "identity",
    "service-accounts/[^/? ]+/token",
    "kube-env",
    // Below its gce-workload-certificates/: private keys.
    "workload-identities",
    // WireServer, and its settings of extensions; OpenStack; Huawei.
    "certificates",
    "vmsettings",
    "password",
    "securitykey",
];

/// The same for what is handed to a machine at its start, and commonly has passwords in it.
const USER_DATA: &[&str] = &[
    // AWS and whoever answers like it; OpenStack, Oracle, Scaleway; Hetzner, Azure.
    "user-data",
    "user_data",
    "userdata",
    "customdata",
    // Google, in the text or as where it is; for Windows, too.
    "attributes/(startup|shutdown)-script(-url)?",
    "attributes/(windows-(startup|shutdown)|sysprep-specialize)-script-(ps1|cmd|bat|url)",
];

/// Whole paths that hand it out among other things: Azure (from API version 2021-01-01 on); Oracle;
/// DigitalOcean; IBM.
const WITH_USER_DATA: &[&str] = &[
    "metadata/instance(/compute)?",
    "opc/v[12]/instance(/metadata)?",
    "metadata/v1\\.json",
    "metadata/v1/instance/initialization",
];

/// Query parameters that hand out credentials: Azure's goal state, and what it names, certificates and
/// settings of extensions.
const CREDENTIAL_PARAMETERS: &[&str] = &[
    "comp=certificates",
    "comp=goalstate",
    "type=extensionsconfig",
];
/// The one that hands out a whole subtree (Google).
const RECURSIVE: &[&str] = &["recursive"];

/// Beginnings of paths that were left behind for ones which want a header: Oracle's first version
/// and Google's beta and first ones.
const LEGACY: &[&str] = &["opc/v1", "computemetadata/v1beta1", "0\\.1"];

/// What is to be said about a path, whatever else the request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It hands out credentials.
    Credentials,
    /// It hands out user data.
    UserData,
    /// It hands out all that is below it.
    Recursive,
    /// It is of a version of the service that wants no header.
    Legacy,
}

impl Class {
    /// In the order of the automaton's patterns.
    const ALL: [Self; 4] = [
        Self::Credentials,
        Self::UserData,
        Self::Recursive,
        Self::Legacy,
    ];

    /// A regular expression for a target, path and query, of this class; it is compared from the
    /// target's start, and a space follows the target.
    fn pattern(self) -> String {
        let segment = |list: &[&str]| format!("[^ ?]*/(?i:{})[/? ]", list.join("|"));
        let parameter = |list: &[&str]| format!("[^ ?]*\\?([^ ]*&)?(?i:{})[=& ]", list.join("|"));
        match self {
            Self::Credentials => format!(
                "({}|{})",
                segment(CREDENTIALS),
                parameter(CREDENTIAL_PARAMETERS)
            ),
            Self::UserData => format!(
                "({}|/(?i:{})/?[? ])",
                segment(USER_DATA),
                WITH_USER_DATA.join("|")
            ),
            Self::Recursive => parameter(RECURSIVE),
            Self::Legacy => format!("/(?i:{})[/? ]", LEGACY.join("|")),
        }
    }

    /// Expressions for all of them.
    pub fn patterns() -> [String; 4] {
        Self::ALL.map(Self::pattern)
    }
}

/// Paths that hand out a session token to `PUT`, with the header that the token is then sent in
/// ([`crate::metadata::Service::headers`]). Compared exactly: where it does not match, the
/// token is not counted.
pub const TOKENS: &[(&str, &str)] = &[
    ("/latest/api/token", "x-aws-ec2-metadata-token"),
    ("/latest/api/token", "x-aliyun-ecs-metadata-token"),
    ("/v1/token", "metadata-token"),
];

/// A session token of the services that answer as EC2 does.
const EC2: &[&str] = &["x-aws-ec2-metadata-token", "x-aliyun-ecs-metadata-token"];

/// First path segments by which a request shows what kind of service it is for, in lower case and
/// compared without regard to case, with the headers that such a service wants; `0` stands for a
/// segment that begins with a digit (a version of EC2's). Sources: [`crate::metadata::CLOUDS`].
pub const OWNED: &[(&str, &[&str])] = &[
    ("latest", EC2),
    ("0", EC2),
    ("computemetadata", &["metadata-flavor"]),
    ("metadata", &["metadata"]),
    ("opc", &["authorization"]),
    ("v1", &["metadata-token"]),
];

/// The same of more than one segment, which go before those: IBM, where Azure has `metadata`. The filter
/// does not know of them: it sends up what carries another header than the first segment's.
const OWNED_BELOW: &[(&str, &[&str])] = &[("/metadata/v1", &["authorization"])];

/// Paths that some service answers which wants no header: Vultr; DigitalOcean, UpCloud.
const OPEN: &[&str] = &["/v1", "/metadata/v1"];
/// Paths that the service itself answers without the header that it wants elsewhere, with that header:
/// Oracle; Azure's WireServer, where its agent reports what it found (WALinuxAgent,
/// azurelinuxagent/common/protocol/healthservice.py).
const HEADERLESS: &[(&str, &[&str])] = &[
    ("/opc/v1", &["authorization"]),
    ("/healthservice", WIRE_SERVER),
];
/// The same of a query, at the root: WireServer says which versions it has, from which its agent
/// chooses.
const HEADERLESS_QUERY: (&str, &[&str]) = ("comp=versions", WIRE_SERVER);
const WIRE_SERVER: &[&str] = &["x-ms-version"];

/// The headers that the service wants whose path this is; `None` where it could be anyone's.
pub fn wanted(path: &str) -> Option<&'static [&'static str]> {
    let below = OWNED_BELOW
        .iter()
        .find(|(prefix, _)| is_below(path, prefix));
    if let Some((_, headers)) = below {
        return Some(headers);
    }
    let first = path.strip_prefix('/')?.split('/').next()?;
    let dated = first.starts_with(|c: char| c.is_ascii_digit());
    OWNED
        .iter()
        .find(|(name, _)| first.eq_ignore_ascii_case(name) || (*name == "0" && dated))
        .map(|(_, headers)| *headers)
}

/// Whether a service that wants no header answers this path, though others want one.
pub fn is_open(path: &str) -> bool {
    OPEN.iter().any(|prefix| is_below(path, prefix))
}

/// The headers without which their service answers this path and query all the same.
pub fn unneeded(path: &str, query: &str) -> &'static [&'static str] {
    let (versions, headers) = HEADERLESS_QUERY;
    if path == "/" && query.eq_ignore_ascii_case(versions) {
        return headers;
    }
    let known = HEADERLESS.iter().find(|(prefix, _)| is_below(path, prefix));
    known.map_or(&[], |(_, headers)| *headers)
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
}

/// Recognises targets by expressions that are compared from their start. The automaton is made as far as it is walked:
/// few targets get here, and all of it takes longer than the rest of a start.
#[derive(Debug)]
pub struct Targets {
    dfa: DFA,
    cache: Mutex<Cache>,
}

impl Targets {
    /// Those of [`Class`].
    ///
    /// # Errors
    /// If an expression is wrong; a test says that none is.
    pub fn of_classes() -> Result<Self> {
        Self::new(&Class::patterns())
    }

    /// Those of these expressions.
    ///
    /// # Errors
    /// If an expression is wrong.
    pub fn new(patterns: &[String]) -> Result<Self> {
        let dfa = DFA::builder()
            // However long the list is: the cache is as large then as it has to be.
            .configure(
                DFA::config()
                    .match_kind(MatchKind::All)
                    .skip_cache_capacity_check(true),
            )
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .build_many(patterns)
            .context("cannot compile the list of paths")?;
        let cache = Mutex::new(dfa.create_cache());
        Ok(Self { dfa, cache })
    }

    /// The places in the list of the expressions that `target`, a path and perhaps a query, has.
    pub fn matches(&self, target: &str) -> Vec<usize> {
        let text = format!("{} ", target.replace(' ', "+"));
        let input = Input::new(&text).anchored(Anchored::Yes);
        let mut found = regex_automata::PatternSet::new(self.dfa.pattern_len());
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        // An error means a byte that this automaton cannot judge; there is none.
        let _ = self
            .dfa
            .try_which_overlapping_matches(&mut cache, &input, &mut found);
        found.iter().map(|pattern| pattern.as_usize()).collect()
    }

    /// The same as classes.
    pub fn classes(&self, target: &str) -> Vec<Class> {
        self.matches(target)
            .into_iter()
            .filter_map(|place| Class::ALL.get(place).copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_may_be_long() {
        let patterns: Vec<_> = (0..20_000)
            .map(|number| format!("/a/path/of/a/long/list/{number} "))
            .collect();
        let targets = Targets::new(&patterns).unwrap();
        assert_eq!(targets.matches("/a/path/of/a/long/list/19999"), [19_999]);
        assert!(targets.matches("/a/path/of/a/long/list/20000").is_empty());
    }

    #[test]
    fn secret_paths_of_every_cloud_are_recognised() {
        let targets = Targets::of_classes().unwrap();
        for path in [
            "/latest/meta-data/iam/security-credentials/",
            "/latest/meta-data/iam/security-credentials/role",
            "/latest/meta-data/iam/security-credentials",
            "/2021-07-15/meta-data/iam/security-credentials/role",
            "/latest/meta-data/ram/security-credentials/role",
            "/latest/meta-data/cam/security-credentials/role",
            "/latest/meta-data/cam/service-role-security-credentials/role",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/latest/user-data",
            "/LATEST/User-Data",
            "/latest/user-data?x=1",
            "/latest/dynamic/instance-identity/document",
            "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net",
            "/metadata/instance/compute/userData",
            "/metadata/instance?api-version=2021-02-01",
            "/metadata/instance/",
            "/Metadata/instance/compute?api-version=2021-02-01",
            "/metadata/attested/document?api-version=2018-10-01",
            "/metadata/v1.json",
            "/metadata/v1/instance/initialization?version=2022-03-01",
            "/metadata/v1/instance/initialization/",
            "/computeMetadata/v1/instance/gce-workload-certificates/workload-identities",
            "/opc/v2/instance/",
            "/opc/v2/instance/metadata",
            "/machine/?comp=goalstate",
            "/machine?comp=goalstate",
            "/machine/1/a?x=1&comp=certificates&incarnation=2",
            "/machine/1/a?comp=config&type=extensionsConfig&incarnation=1",
            "/vmSettings",
            "/computeMetadata/v1/instance/service-accounts/default/token",
            "/computeMetadata/v1/instance/service-accounts/default/identity?audience=a",
            "/computeMetadata/v1/instance/attributes/kube-env",
            "/computeMetadata/v1/instance/?recursive=true",
            "/computeMetadata/v1/?alt=json&recursive=true",
            "/computeMetadata/v1/instance/attributes/startup-script",
            "/computeMetadata/v1/project/attributes/startup-script-url",
            "/computeMetadata/v1/instance/attributes/shutdown-script",
            "/computeMetadata/v1/instance/attributes/shutdown-script-url",
            "/computeMetadata/v1/instance/attributes/windows-startup-script-ps1",
            "/computeMetadata/v1/instance/attributes/windows-startup-script-cmd",
            "/computeMetadata/v1/instance/attributes/windows-shutdown-script-bat",
            "/computeMetadata/v1/instance/attributes/windows-startup-script-url",
            "/computeMetadata/v1/instance/attributes/sysprep-specialize-script-ps1",
            "/opc/v2/identity/cert.pem",
            "/opc/v1/instance/metadata/user_data",
            "/openstack/latest/user_data",
            "/openstack/latest/securitykey",
            "/v1/user-data",
            "/metadata/v1/user-data",
            "/hetzner/v1/userdata",
            "/user_data",
            "/instance_identity/v1/iam_token",
        ] {
            assert!(!targets.classes(path).is_empty(), "{path}");
        }
    }

    #[test]
    fn the_first_segment_says_which_header_is_wanted() {
        for (path, headers) in [
            ("/latest/meta-data/", EC2),
            ("/Latest", EC2),
            ("/2021-07-15/meta-data", EC2),
            ("/computeMetadata/v1/", &["metadata-flavor"]),
            ("/metadata/instance", &["metadata"]),
            ("/metadata/v1x", &["metadata"]),
            ("/Metadata/v1/instance", &["authorization"]),
            ("/opc/v2/instance/", &["authorization"]),
            ("/v1/instance", &["metadata-token"]),
        ] {
            assert_eq!(wanted(path), Some(headers), "{path}");
        }
        for path in ["/", "/openstack/latest", "/latests", "/v1.json"] {
            assert_eq!(wanted(path), None, "{path}");
        }
        assert!(is_open("/v1") && is_open("/V1/x") && is_open("/metadata/v1/id"));
        assert!(!is_open("/v1.json") && !is_open("/metadata/instance") && !is_open("/"));
    }

    #[test]
    fn ordinary_paths_are_none() {
        let targets = Targets::of_classes().unwrap();
        for path in [
            "/",
            "/latest/meta-data/",
            "/latest/meta-data/instance-id",
            "/latest/meta-data/iam/info",
            "/latest/api/token",
            "/latest/user-data-not",
            "/latest/not-user-data",
            "/metadata/instance/network?api-version=2021-02-01",
            "/metadata/instance/compute/name",
            "/metadata/v1.jsonx",
            "/metadata/v1/instance",
            "/metadata/v1/instance/initialization/x",
            "/computeMetadata/v1/instance/gce-workload-certificates/config-status",
            "/computeMetadata/v1/instance/zone",
            "/computeMetadata/v1/instance/attributes/",
            "/computeMetadata/v1/instance/attributes/startup-scripts",
            "/opc/v2/instance/id",
            "/openstack/latest/meta_data.json",
            "/?x=recursive",
        ] {
            assert_eq!(targets.classes(path), [], "{path}");
        }
    }
}
