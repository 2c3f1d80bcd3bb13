//! What a node of a cluster says of the others, as `CLUSTER NODES` has it.

/// The host and the port of a server.
pub(super) type Address = (String, u16);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClusterNode {
    pub(super) address: Address,
    /// Since when it has its slots.
    pub(super) epoch: u64,
    /// The first and the last of each range. None of a node that has failed, or is a replica.
    slots: Vec<(u16, u16)>,
}

impl ClusterNode {
    pub(super) fn has(&self, slot: u16) -> bool {
        self.slots
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&slot))
    }
}

/// The nodes that may be spoken to. The host is the one that was asked: a node which has met no other
/// does not know how it is called.
pub(super) fn nodes(text: &str, host: &str, has_tls: bool) -> Vec<ClusterNode> {
    let node = |line| node(line, host, has_tls);
    text.lines().filter_map(node).collect()
}

/// Reads a line: `id ip:port@bus[,hostname[,…]] flags primary ping pong epoch link slots…`.
fn node(line: &str, host: &str, has_tls: bool) -> Option<ClusterNode> {
    let mut words = line.split(' ');
    let (_, at, flags) = (words.next()?, words.next()?, words.next()?);
    let is = |flag| flags.split(',').any(|it| it == flag);
    if is("noaddr") || is("handshake") {
        return None;
    }
    let (address, rest) = at.split_once('@')?;
    let (ip, port) = address.rsplit_once(':')?;
    // A certificate is one of a name, where there is any.
    let name = rest
        .split(',')
        .nth(1)
        .filter(|it| has_tls && !it.is_empty());
    let ip = if ip.is_empty() { host } else { ip };
    let address = (name.unwrap_or(ip).to_owned(), port.parse().ok()?);
    let epoch = words.nth(3)?.parse().ok()?;
    // Slots that are being moved stand in brackets, and once more without.
    let is_primary = is("master") && !is("fail");
    let slots = words.skip(1).filter(|_| is_primary).filter_map(|slots| {
        let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    Some(ClusterNode {
        address,
        epoch,
        slots: slots.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = "\
07c37df 127.0.0.1:30004@31004,host-4 slave e7d1eec 0 1426238317239 4 connected
67ed2db 127.0.0.1:30002@31002,host-2,shard-id=1 master - 0 1426238316232 2 connected 5461-10922
292f8b3 ::1:30003@31003 master,fail? - 0 1426238318243 3 connected 10923-16382 16383
6ec2392 127.0.0.1:30005@31005 master,fail - 0 1426238316232 5 connected 0-5460
824fe11 :0@0 master,noaddr - 0 1426238316232 5 disconnected
e7d1eec :30001@31001 myself,master - 0 0 6 connected 0-5460 [93-<-292f8b3] [77->-67ed2db]
";

    #[test]
    fn nodes_are_read_with_their_slots() {
        let nodes = nodes(NODES, "asked", false);
        let owner = |slot| {
            let node = nodes.iter().find(|it| it.has(slot)).unwrap();
            (&*node.address.0, node.address.1, node.epoch)
        };
        assert_eq!(nodes.len(), 5);
        assert_eq!(owner(0), ("asked", 30001, 6));
        assert_eq!(owner(77), ("asked", 30001, 6));
        assert_eq!(owner(5461), ("127.0.0.1", 30002, 2));
        assert_eq!(owner(16382), ("::1", 30003, 3));
        assert_eq!(owner(16383), ("::1", 30003, 3));
    }

    #[test]
    fn nodes_are_addressed_by_host_name_under_tls() {
        let nodes = nodes(NODES, "asked", true);
        let hosts: Vec<_> = nodes.iter().map(|node| &*node.address.0).collect();
        assert_eq!(hosts, ["host-4", "host-2", "::1", "127.0.0.1", "asked"]);
    }

    #[test]
    fn invalid_node_list_yields_no_nodes() {
        for text in [
            "",
            "\n",
            "a b c",
            "a 1:2@3 master - 0 0 x up",
            "a 1:x@3 m - 0 0 1 up",
        ] {
            assert_eq!(nodes(text, "h", false), [], "{text:?}");
        }
    }
}
