// SPDX-License-Identifier: BSD-2-Clause

//! Real clients ask, and imds-watch says of each request what there is to be said, and nothing else.
//!
//! The forms of clients that are not run here are in tests/imds_watch/clients.json.

mod common;

mod root {
    use std::io::Read as _;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;

    use crate::common::{ALICE, Background, IMDS4, Network, Tool, python3, sh};

    const ECS4: &str = "169.254.170.2";

    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/clients")
            .join(name)
    }

    /// The Python that has the clients' libraries.
    fn clients() -> PathBuf {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/clients/bin/python3");
        assert!(
            python.exists(),
            "{} is missing: packaging/install-deps test makes it",
            python.display()
        );
        python
    }

    /// What a client asks for, and what is found.
    type Asked = &'static [(&'static str, &'static str)];

    const PUT_TOKEN: (&str, &str) = ("PUT /latest/api/token", "");
    const ROLES: &str = "GET /latest/meta-data/iam/security-credentials/";
    const ROLE: &str = "GET /latest/meta-data/iam/security-credentials/role";
    const ID: &str = "GET /latest/meta-data/instance-id";

    /// The cloud, a function of ask.py, and what it does.
    const LIBRARIES: &[(&str, &str, Asked)] = &[
        ("aws", "with_urllib", &[(ID, "imdsv1"), PUT_TOKEN, (ID, "")]),
        (
            "aws",
            "with_requests",
            &[PUT_TOKEN, (ID, ""), (ID, "imdsv1")],
        ),
        (
            "aws",
            "with_botocore",
            &[PUT_TOKEN, (ROLES, "credentials"), (ROLE, "credentials")],
        ),
        (
            "aws",
            "botocore_region",
            &[
                PUT_TOKEN,
                ("GET /latest/meta-data/placement/availability-zone/", ""),
            ],
        ),
        (
            "aws",
            "botocore_without_tokens",
            &[
                PUT_TOKEN,
                (ROLES, "imdsv1,credentials"),
                (ROLE, "imdsv1,credentials"),
            ],
        ),
        (
            "aws-ecs",
            "botocore_in_a_container",
            &[("GET /v2/credentials/abc", "credentials")],
        ),
        (
            "azure",
            "azure_identity",
            &[("GET /metadata/identity/oauth2/token", "credentials")],
        ),
        (
            "azure",
            "azure_identity_by_default",
            &[
                // It asks first whether anybody is there.
                (
                    "GET /metadata/identity/oauth2/token",
                    "missing-metadata-header,credentials",
                ),
                ("GET /metadata/identity/oauth2/token", "credentials"),
            ],
        ),
        (
            "gcp",
            "google_auth",
            &[
                ("GET /", ""),
                ("GET /computeMetadata/v1/project/project-id", ""),
                (
                    "GET /computeMetadata/v1/instance/service-accounts/default/",
                    "recursive",
                ),
                (
                    "GET /computeMetadata/v1/instance/service-accounts/default/token",
                    "credentials",
                ),
            ],
        ),
    ];

    /// The same with curl's arguments.
    const CURL: &[(&[&str], (&str, &str))] = &[
        (
            &[
                "-X",
                "PUT",
                "-H",
                "X-aws-ec2-metadata-token-ttl-seconds: 60",
                "http://169.254.169.254/latest/api/token",
            ],
            PUT_TOKEN,
        ),
        (
            &[
                "-H",
                "X-aws-ec2-metadata-token: TOKEN",
                "http://169.254.169.254/latest/meta-data/instance-id",
            ],
            (ID, ""),
        ),
        (
            &["http://169.254.169.254/latest/user-data"],
            ("GET /latest/user-data", "imdsv1,user-data"),
        ),
        (
            &["-I", "http://169.254.169.254/latest/meta-data/instance-id"],
            ("HEAD /latest/meta-data/instance-id", "imdsv1"),
        ),
    ];

    /// Of each request "METHOD /path", and its findings.
    fn told(network: &Network, cloud: &str, ask: impl FnOnce()) -> Vec<(String, String)> {
        let args = ["imds-watch", "--all", "--cloud", cloud];
        let tool = Tool::start(&network.machine, &args);
        ask();
        let ended = tool.stop();
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("?").to_owned();
        let events = ended.kind("request").into_iter().map(|event| {
            assert_eq!(event["uid"], ALICE, "{event}");
            let findings = event["findings"].as_array().unwrap();
            let findings: Vec<_> = findings.iter().map(text).collect();
            let asked = format!("{} {}", text(&event["method"]), text(&event["path"]));
            (asked, findings.join(","))
        });
        events.collect()
    }

    fn expected(asked: &[(&str, &str)]) -> Vec<(String, String)> {
        let pair = |(what, found): &(&str, &str)| ((*what).to_owned(), (*found).to_owned());
        asked.iter().map(pair).collect()
    }

    fn service(network: &Network) -> Background {
        network.answer_for(ECS4);
        let mut command = network.cloud.command(python3());
        command.arg(file("service.py")).args([IMDS4, ECS4]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut service = Background(command.spawn().unwrap());
        let mut line = [0; 6];
        let out = service.0.stdout.as_mut().unwrap();
        out.read_exact(&mut line).expect("the service is ready");
        service
    }

    #[test]
    fn of_each_request_of_a_library_all_is_found_and_nothing_else() {
        let clients = clients();
        let network = Network::new();
        let _service = service(&network);
        for (cloud, client, asked) in LIBRARIES {
            let told = told(&network, cloud, || {
                let mut command = network.machine.command_as(ALICE, &clients);
                command.arg(file("ask.py")).arg(client);
                // Where it may look for settings of its own.
                command.env("HOME", "/nonexistent");
                sh(&mut command);
            });
            assert_eq!(told, expected(asked), "{client}");
        }
    }

    #[test]
    fn of_each_request_of_curl_all_is_found_and_nothing_else() {
        let network = Network::new();
        let _service = service(&network);
        let told = told(&network, "aws", || {
            for (args, _) in CURL {
                let output = network.curl(ALICE, args);
                assert!(output.status.success(), "{output:?}");
            }
        });
        let asked: Vec<_> = CURL.iter().map(|(_, asked)| *asked).collect();
        assert_eq!(told, expected(&asked));
    }
}
