// SPDX-License-Identifier: BSD-2-Clause

//! The catalogue of metadata services: where each cloud's is, and which header its requests carry
//! when they cannot have been forged through a proxy or an open redirect. Pure data.

use std::net::IpAddr;

use crate::endpoint::{Endpoint, Protocol};
use crate::failure::Failure;

/// A cloud's metadata service, or one of several that a cloud has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cloud {
    /// The name on the command line and in events.
    pub name: &'static str,
    /// What a person calls it.
    pub title: &'static str,
    /// What is guarded.
    pub services: &'static [Service],
    /// Where the addresses are written.
    pub source: &'static str,
    /// Whether a second source, independent of the vendor's page, says the same (systemd's
    /// hwdb.d/40-imds.hwdb or the cloud's own SDK).
    pub confirmed: bool,
}

/// Endpoints whose requests are to carry the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Addresses and TCP ports.
    pub endpoints: &'static [(&'static str, u16)],
    /// The headers without one of which a request is one that the cloud would rather not see: a session
    /// token (AWS's IMDSv2) or a header that a redirected browser or proxy does not add. None where
    /// the service wants none.
    pub headers: &'static [&'static str],
}

const fn service(
    endpoints: &'static [(&'static str, u16)],
    headers: &'static [&'static str],
) -> Service {
    Service { endpoints, headers }
}

/// The address that most clouds share; link-local (RFC 3927).
const COMMON: (&str, u16) = ("169.254.169.254", 80);

/// The same by HTTPS: Google Cloud's, and IBM's where the instance has `metadata_service.protocol` set
/// to it. What goes there cannot be read, so that only tc-guard has a use for it.
const ENCRYPTED: (&str, u16) = ("169.254.169.254", HTTPS);

/// The port of HTTPS (RFC 9110, 4.2.2).
pub const HTTPS: u16 = 443;

/// Every service that `--cloud` knows, in alphabetical order.
///
/// DNS, NTP and DHCP on the same addresses are no part of it: a machine needs them.
pub const CLOUDS: &[Cloud] = &[
    Cloud {
        name: "akamai",
        title: "Akamai (Linode)",
        services: &[service(
            &[COMMON, ("fd00:a9fe:a9fe::1", 80)],
            &["metadata-token"],
        )],
        source: "https://techdocs.akamai.com/cloud-computing/docs/metadata-service-api",
        confirmed: true,
    },
    Cloud {
        name: "alibaba",
        title: "Alibaba Cloud",
        services: &[service(
            &[("100.100.100.200", 80), ("fd00:100::100:200", 80)],
            &["x-aliyun-ecs-metadata-token"],
        )],
        source: "https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata",
        confirmed: true,
    },
    Cloud {
        name: "aws",
        title: "Amazon EC2",
        services: &[service(
            &[COMMON, ("fd00:ec2::254", 80)],
            &["x-aws-ec2-metadata-token"],
        )],
        source: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html",
        confirmed: true,
    },
    Cloud {
        name: "aws-ecs",
        title: "Amazon ECS task credentials",
        services: &[service(&[("169.254.170.2", 80)], &[])],
        source: "https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html",
        confirmed: true,
    },
    Cloud {
        name: "aws-eks",
        title: "Amazon EKS Pod Identity",
        services: &[service(
            &[("169.254.170.23", 80), ("fd00:ec2::23", 80)],
            &["authorization"],
        )],
        source: "https://docs.aws.amazon.com/eks/latest/userguide/pod-id-how-it-works.html",
        confirmed: true,
    },
    Cloud {
        name: "azure",
        title: "Microsoft Azure, with its WireServer",
        services: &[
            service(&[COMMON], &["metadata"]),
            service(&[("168.63.129.16", 80)], &["x-ms-version"]),
            // The agent asks here on behalf of its container, and sends its log with headers of its own:
            // WALinuxAgent, azurelinuxagent/common/protocol/hostplugin.py.
            service(
                &[("168.63.129.16", 32526)],
                &[
                    "x-ms-version",
                    "x-ms-containerid",
                    "x-ms-vmagentlog-containerid",
                ],
            ),
        ],
        source: "https://learn.microsoft.com/en-us/azure/virtual-machines/instance-metadata-service",
        confirmed: true,
    },
    Cloud {
        name: "digitalocean",
        title: "DigitalOcean",
        services: &[service(&[COMMON], &[])],
        source: "https://docs.digitalocean.com/reference/api/metadata-api/",
        confirmed: true,
    },
    Cloud {
        name: "exoscale",
        title: "Exoscale",
        services: &[service(&[COMMON], &[])],
        source: "https://community.exoscale.com/product/compute/instances/how-to/meta-data/",
        confirmed: false,
    },
    Cloud {
        name: "gcp",
        title: "Google Cloud",
        services: &[service(
            &[
                COMMON,
                ENCRYPTED,
                ("fd20:ce::254", 80),
                ("fd20:ce::254", HTTPS),
            ],
            &["metadata-flavor"],
        )],
        source: "https://cloud.google.com/compute/docs/metadata/querying-metadata",
        confirmed: true,
    },
    Cloud {
        name: "hetzner",
        title: "Hetzner Cloud",
        services: &[service(&[COMMON], &[])],
        source: "https://docs.hetzner.cloud/#server-metadata",
        confirmed: true,
    },
    Cloud {
        name: "huawei",
        title: "Huawei Cloud",
        services: &[service(&[COMMON], &[])],
        source: "https://support.huaweicloud.com/intl/en-us/usermanual-ecs/ecs_03_0166.html",
        confirmed: false,
    },
    Cloud {
        name: "ibm",
        title: "IBM Cloud VPC",
        services: &[service(
            &[COMMON, ENCRYPTED],
            // A token is asked for with the one, and sent in the other.
            &["metadata-flavor", "authorization"],
        )],
        source: "https://cloud.ibm.com/docs/vpc?topic=vpc-imd-about",
        confirmed: false,
    },
    Cloud {
        name: "openstack",
        title: "OpenStack",
        services: &[service(&[COMMON, ("fe80::a9fe:a9fe", 80)], &[])],
        source: "https://docs.openstack.org/nova/latest/user/metadata.html",
        confirmed: true,
    },
    Cloud {
        name: "oracle",
        title: "Oracle Cloud, with classic",
        services: &[service(
            &[COMMON, ("fd00:c1::a9fe:a9fe", 80), ("192.0.0.192", 80)],
            &["authorization"],
        )],
        source: "https://docs.oracle.com/en-us/iaas/Content/Compute/Tasks/gettingmetadata.htm",
        confirmed: true,
    },
    Cloud {
        name: "scaleway",
        title: "Scaleway",
        services: &[service(&[("169.254.42.42", 80), ("fd00:42::42", 80)], &[])],
        source: "https://www.scaleway.com/en/docs/instances/how-to/use-cloud-init/",
        confirmed: true,
    },
    Cloud {
        name: "tencent",
        title: "Tencent Cloud",
        services: &[service(&[("169.254.0.23", 80)], &[])],
        source: "https://www.tencentcloud.com/document/product/213/4934",
        confirmed: true,
    },
    Cloud {
        name: "upcloud",
        title: "UpCloud",
        services: &[service(&[COMMON], &[])],
        source: "https://upcloud.com/docs/products/cloud-servers/features/metadata-service/",
        confirmed: false,
    },
    Cloud {
        name: "vultr",
        title: "Vultr",
        services: &[service(&[COMMON], &[])],
        source: "https://www.vultr.com/metadata/",
        confirmed: true,
    },
];

/// The headers that some service wants, each once, in alphabetical order.
pub fn headers() -> Vec<&'static str> {
    let services = CLOUDS.iter().flat_map(|cloud| cloud.services);
    let mut headers: Vec<_> = services.flat_map(|one| one.headers).copied().collect();
    headers.sort_unstable();
    headers.dedup();
    headers
}

/// The names that `--cloud` takes besides `all`.
pub fn names() -> impl Iterator<Item = &'static str> {
    CLOUDS.iter().map(|cloud| cloud.name)
}

/// The cloud of this name.
pub fn cloud(name: &str) -> Option<&'static Cloud> {
    CLOUDS.iter().find(|cloud| cloud.name == name)
}

/// The clouds of these names; `all` stands for every one.
///
/// # Errors
/// [`Failure::Usage`] for a name that no cloud has.
pub fn chosen(names: &[String]) -> Result<Vec<&'static Cloud>, Failure> {
    let mut clouds = Vec::new();
    for name in names {
        if name == "all" {
            return Ok(CLOUDS.iter().collect());
        }
        let cloud = cloud(name).ok_or_else(|| {
            let known: Vec<_> = self::names().collect();
            Failure::usage(format!(
                "no cloud {name:?}; expected all or {}",
                known.join(", ")
            ))
        })?;
        if !clouds.contains(&cloud) {
            clouds.push(cloud);
        }
    }
    Ok(clouds)
}

/// The endpoints of the clouds of these names.
///
/// # Errors
/// As [`chosen`].
pub fn endpoints(names: &[String]) -> Result<Vec<Endpoint>, Failure> {
    Ok(chosen(names)?
        .into_iter()
        .flat_map(Cloud::guarded)
        .collect())
}

impl Cloud {
    /// The endpoints, each under the cloud's name.
    pub fn guarded(&self) -> impl Iterator<Item = Endpoint> {
        self.services
            .iter()
            .flat_map(|service| service.guarded(self.name))
    }
}

impl Service {
    /// The endpoints, each under this name.
    pub fn guarded(&self, name: &'static str) -> impl Iterator<Item = Endpoint> + use<> {
        self.endpoints.iter().filter_map(move |(address, port)| {
            // Every address of the catalogue parses; a test says so.
            let address: IpAddr = address.parse().ok()?;
            Some(Endpoint {
                name: name.to_owned(),
                address,
                prefix: if address.is_ipv4() { 32 } else { 128 },
                ports: *port..=*port,
                protocol: Some(Protocol::Tcp),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_the_catalogue_becomes_an_endpoint() {
        for cloud in CLOUDS {
            let listed = cloud.services.iter().map(|one| one.endpoints.len());
            assert_eq!(
                cloud.guarded().count(),
                listed.sum::<usize>(),
                "{}",
                cloud.name
            );
            assert!(cloud.source.starts_with("https://"), "{}", cloud.name);
        }
    }

    #[test]
    fn names_are_unique_sorted_and_found() {
        let listed: Vec<_> = names().collect();
        let mut sorted = listed.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(listed, sorted);
        assert_eq!(cloud("aws").map(|cloud| cloud.guarded().count()), Some(2));
        assert!(cloud("all").is_none());
    }

    #[test]
    fn all_means_every_cloud_and_a_wrong_name_is_named() {
        assert_eq!(
            chosen(&["aws".to_owned(), "all".to_owned()]).unwrap().len(),
            CLOUDS.len()
        );
        assert_eq!(
            chosen(&["aws".to_owned(), "aws".to_owned()]).unwrap().len(),
            1
        );
        let err = chosen(&["AWS".to_owned()]).unwrap_err().to_string();
        assert!(
            err.contains("\"AWS\"") && err.contains("openstack"),
            "{err}"
        );
    }

    #[test]
    fn the_resolver_and_clock_of_the_same_address_are_left_open() {
        for endpoint in CLOUDS.iter().flat_map(Cloud::guarded) {
            assert_eq!(endpoint.protocol, Some(Protocol::Tcp));
            assert!(!endpoint.ports.contains(&53) && !endpoint.ports.contains(&123));
        }
    }

    #[test]
    fn headers_are_in_the_lower_case_that_the_scanner_compares_with() {
        for header in headers() {
            assert_eq!(header, header.to_ascii_lowercase());
        }
    }
}
