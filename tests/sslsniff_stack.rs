// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff --stack`, with what the machines of tests/vm have; tests/sslsniff_programs.rs has
//! other programs.

mod common;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use super::common::Tool;
    use super::place::{CURL, Place, URL, nothing_is_lost};

    /// Under a name that no other test's curl has.
    fn curl(place: &Place, name: &str) {
        let mut command = place.netns.command(place.curl_named(name));
        assert!(command.args(CURL).arg(URL).status().unwrap().success());
    }

    #[test]
    fn the_stack_of_each_call_is_told_once_from_the_function_on() {
        let place = Place::new();
        let _nginx = place.nginx();
        let tool = Tool::start(&place.netns, &["sslsniff", "--stack", "-c", "curl-told"]);
        curl(&place, "curl-told");
        let ended = tool.stop();
        nothing_is_lost(&ended);
        assert!(ended.summary().get("lost_stacks").is_none());
        let mut told = ended.kind("data");
        told.extend(ended.kind("handshake"));
        assert!(told.len() >= 3, "{told:?}");
        for event in told {
            let stack = event["stack"].as_array().expect("a stack");
            assert_eq!(stack[0]["function"], event["function"]);
            assert_eq!(stack[0]["file"], event["library"]);
            assert!(event["library"].is_string(), "{event}");
            assert!(stack[0].get("address").is_none());
            // The function was called by libcurl, whatever else could be followed.
            let file = stack[1]["file"].as_str().unwrap_or_default();
            assert!(file.contains("/libcurl"), "{event}");
            assert!(stack[1]["address"].as_str().unwrap().starts_with("0x"));
        }
    }

    #[test]
    fn nothing_is_said_of_stacks_unless_it_is_asked_for() {
        let place = Place::new();
        let _nginx = place.nginx();
        let tool = Tool::start(&place.netns, &["sslsniff", "-c", "curl-untold"]);
        curl(&place, "curl-untold");
        let ended = tool.stop();
        assert!(!ended.kind("data").is_empty());
        for event in ended.kind("data") {
            assert!(event.get("stack").is_none() && event.get("stack_reason").is_none());
        }
    }
}
