// SPDX-License-Identifier: BSD-2-Clause

//! By which interfaces this machine reaches what is guarded, and whether the guard sees it there.

use std::collections::BTreeMap;

use anyhow::Result;

use super::check::Finding;
use super::plan::Plan;
use super::status::InterfaceStatus;
use super::trial;
use crate::endpoint::Endpoint;
use crate::kernel::{interfaces, route};

/// The endpoints of `plan` that are reached past the interfaces that are `guarded`, or in a form that is not
/// understood there. Interfaces that the guard knows and does not guard are not named once more.
///
/// # Errors
/// If the kernel does not say what routes and addresses there are.
pub fn findings(plan: &Plan, guarded: &[InterfaceStatus]) -> Result<Vec<Finding>> {
    let mut findings = own_addresses(plan, guarded)?;
    let names: BTreeMap<i32, String> = interfaces::all()?
        .into_iter()
        .map(|interface| (interface.index, interface.name))
        .collect();
    let mut past: BTreeMap<&str, Vec<&Endpoint>> = BTreeMap::new();
    for target in &plan.endpoints {
        let endpoint = &target.endpoint;
        // Of a network all that is asked for is its first host: parts of it may have routes of their own.
        let (_, first) = trial::first_address(endpoint);
        let Some(route) = route::to(first)? else {
            continue;
        };
        // One that has gone since is not there.
        let Some(name) = names.get(&route.interface) else {
            continue;
        };
        if let Some(how) = route.encapsulation {
            findings.push(Finding::gap(
                "interface",
                format!("{endpoint} is reached by {name} in an encapsulation ({how}) that is not looked into"),
                "take `encap` out of its route (ip route get)",
            ));
        } else if name != "lo" && !guarded.iter().any(|at| at.name == *name) {
            past.entry(name).or_default().push(endpoint);
        }
    }
    findings.extend(past.into_iter().map(|(name, endpoints)| {
        let more = match endpoints.len() {
            1 => String::new(),
            all => format!(" (and {} more)", all - 1),
        };
        Finding::gap(
            "interface",
            format!(
                "{}{more} is reached by {name}, which is not guarded",
                endpoints[0]
            ),
            format!("name {name} with -i as well, or leave -i away"),
        )
    }));
    Ok(findings)
}

/// An endpoint that is an address of the machine is reached by the loopback interface.
fn own_addresses(plan: &Plan, guarded: &[InterfaceStatus]) -> Result<Vec<Finding>> {
    if guarded.iter().any(|at| at.name == "lo") {
        return Ok(Vec::new());
    }
    let own = interfaces::addresses()?;
    let reached = plan.endpoints.iter().filter_map(|target| {
        let own = own.iter().find(|own| target.endpoint.contains(**own))?;
        Some(Finding::gap(
            "interface",
            format!(
                "{} is the machine's own address {own}, reached by lo",
                target.endpoint
            ),
            "name lo with -i as well",
        ))
    });
    Ok(reached.collect())
}
