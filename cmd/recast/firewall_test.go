package main

import (
	"strings"
	"testing"
)

func nft(rules ...string) string {
	return `{"nftables":[{"metainfo":{}},
	{"chain":{"family":"ip6","table":"f","name":"input","type":"filter","hook":"input","prio":0,"policy":"drop"}},
	{"chain":{"family":"inet","table":"f","name":"input","type":"filter","hook":"input","prio":0,"policy":"` + rules[0] + `"}},
	` + strings.Join(append([]string{`{"chain":{"family":"inet","table":"f","name":"more"}}`}, rules[1:]...), ",") + `]}`
}

func nftLine(chain string, exprs ...string) string {
	return `{"rule":{"family":"inet","table":"f","chain":"` + chain + `","expr":[` + strings.Join(exprs, ",") + `]}}`
}

const (
	dport69     = `{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":69}}`
	dportSet    = `{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":{"set":[67,{"range":[60,70]}]}}}`
	dportNamed  = `{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":"@ports"}}`
	tcp22       = `{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":22}}`
	notTCP8080  = `{"match":{"op":"!=","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":8080}}`
	established = `{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","related"]}}`
	onLoopback  = `{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"lo"}}`
	onEth0      = `{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"eth0"}}`
	isUDP       = `{"match":{"op":"==","left":{"meta":{"key":"l4proto"}},"right":"udp"}}`
	fromSome    = `{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"10.0.0.1"}}`
	counter     = `{"counter":{"packets":1,"bytes":2}}`
	drop        = `{"drop":null}`
	accept      = `{"accept":null}`
	reject      = `{"reject":{"type":"icmpx"}}`
	jump        = `{"jump":{"target":"more"}}`
)

const (
	fromLL    = `{"match":{"op":"==","left":{"payload":{"protocol":"ip6","field":"saddr"}},"right":{"prefix":{"addr":"fe80::","len":10}}}}`
	ndSolicit = `{"match":{"op":"==","left":{"payload":{"protocol":"icmpv6","field":"type"}},"right":{"set":["nd-router-solicit","nd-neighbor-solicit"]}}}`
	echo6     = `{"match":{"op":"==","left":{"payload":{"protocol":"icmpv6","field":"type"}},"right":"echo-request"}}`
	isICMPv6  = `{"match":{"op":"==","left":{"meta":{"key":"l4proto"}},"right":"ipv6-icmp"}}`
	stateMap  = `{"vmap":{"key":{"ct":{"key":"state"}},"data":{"set":[["established",{"accept":null}],["invalid",{"drop":null}]]}}}`
	portMap   = `{"vmap":{"key":{"payload":{"protocol":"udp","field":"dport"}},"data":{"set":[[69,{"drop":null}],[67,{"accept":null}]]}}}`
	namedMap  = `{"vmap":{"key":{"payload":{"protocol":"udp","field":"dport"}},"data":"@ports"}}`
)

func nfproto(v string) string {
	return `{"match":{"op":"==","left":{"meta":{"key":"nfproto"}},"right":"` + v + `"}}`
}

// six is a table of IPv6 with the policy accept, nftSix an inet one, each with one rule.
func six(exprs ...string) string {
	return `{"nftables":[{"chain":{"family":"ip6","table":"f","name":"input","type":"filter","hook":"input","prio":0,"policy":"accept"}},` +
		strings.Replace(nftLine("input", exprs...), "inet", "ip6", 1) + `]}`
}

func nftSix(policy string, exprs ...string) string {
	return `{"nftables":[{"chain":{"family":"inet","table":"f","name":"input","type":"filter","hook":"input","prio":0,"policy":"` + policy + `"}},` +
		nftLine("input", exprs...) + `]}`
}

func ingress(dev string) string {
	return `{"nftables":[{"chain":{"family":"netdev","table":"f","name":"in","type":"filter","hook":"ingress","prio":0,"dev":"` + dev + `","policy":"accept"}},` +
		strings.Replace(nftLine("in", dport69, drop), "inet", "netdev", 1) + `]}`
}

func TestNftRulesThatDropAreFound(t *testing.T) {
	tftp, http := flow{"eth0", false, "udp", 69}, flow{"eth0", false, "tcp", 8080}
	tftp6, nd := flow{"eth0", true, "udp", 69}, flow{"eth0", true, protoND, 0}
	for _, c := range []struct {
		name  string
		rules string
		flow  flow
		want  answer
		why   string
	}{
		{"none", `{"nftables":[]}`, tftp, no, ""},
		{"policy accept", nft("accept"), tftp, no, ""},
		{"policy drop", nft("drop"), tftp, yes, "the policy of nft inet f input"},
		{"a drop rule", nft("accept", nftLine("input", dport69, counter, drop)), tftp, yes, "udp dport 69 drop"},
		{"a drop rule for another port", nft("accept", nftLine("input", dport69, drop)), http, no, ""},
		{"a set with a range", nft("accept", nftLine("input", dportSet, drop)), tftp, yes, "udp dport 67,60-70 drop"},
		{"a named set", nft("accept", nftLine("input", dportNamed, drop)), tftp, perhaps, "udp dport @ports drop"},
		{"a named set of another protocol", nft("accept", nftLine("input", dportNamed, drop)), http, no, ""},
		{"reject of all but", nft("accept", nftLine("input", notTCP8080, reject)), http, no, ""},
		{"reject", nft("accept", nftLine("input", isUDP, reject)), tftp, yes, "protocol udp reject"},
		{"allowed before the policy", nft("drop", nftLine("input", established, accept), nftLine("input", tcp22, accept), nftLine("input", dport69, accept)), tftp, no, ""},
		{"not allowed before the policy", nft("drop", nftLine("input", established, accept), nftLine("input", tcp22, accept), nftLine("input", onLoopback, accept)), tftp, yes, "policy"},
		{"allowed on its interface", nft("drop", nftLine("input", onEth0, accept)), tftp, no, ""},
		{"allowed on another interface", nft("drop", nftLine("input", onEth0, accept)), flow{"eth1", false, "udp", 69}, yes, "policy"},
		{"perhaps allowed", nft("drop", nftLine("input", fromSome, accept)), tftp, perhaps, "policy"},
		{"perhaps dropped", nft("accept", nftLine("input", fromSome, dport69, drop)), tftp, perhaps, "udp dport 69 drop"},
		{"perhaps dropped, then accepted", nft("accept", nftLine("input", fromSome, drop), nftLine("input", dport69, accept)), tftp, perhaps, "drop"},
		{"dropped behind a jump", nft("accept", nftLine("input", jump), nftLine("more", dport69, drop)), tftp, yes, "nft inet f more: udp dport 69 drop"},
		{"accepted behind a jump", nft("drop", nftLine("input", jump), nftLine("more", dport69, accept)), tftp, no, ""},
		{"a jump that comes back", nft("drop", nftLine("input", jump), nftLine("more", tcp22, accept)), tftp, yes, "policy"},
		{"by IPv6, dropped by its own table", nft("accept"), tftp6, yes, "the policy of nft ip6 f input"},
		{"by IPv6, not what a rule for IPv4 drops", six(fromSome, drop), tftp6, no, ""},
		{"by IPv6, allowed there", six(dport69, accept), tftp6, no, ""},
		{"by IPv6, allowed for IPv4 alone", nftSix("drop", nfproto("ipv4"), accept), tftp6, yes, "policy"},
		{"by IPv6, allowed from link-local", nftSix("drop", fromLL, accept), tftp6, perhaps, "policy"},
		{"by IPv4, allowed from IPv6 addresses", nft("drop", nftLine("input", fromLL, accept)), tftp, yes, "policy"},
		{"neighbours forgotten", nftSix("drop", dport69, accept), nd, yes, "policy"},
		{"neighbours allowed by type", nftSix("drop", ndSolicit, accept), nd, no, ""},
		{"neighbours allowed by protocol", nftSix("drop", isICMPv6, accept), nd, no, ""},
		{"echo requests alone", nftSix("drop", echo6, accept), nd, yes, "policy"},
		{"a verdict map of states", nft("drop", nftLine("input", stateMap), nftLine("input", dport69, accept)), tftp, no, ""},
		{"a verdict map of ports", nft("accept", nftLine("input", portMap)), tftp, yes, "udp dport 69 drop"},
		{"a verdict map of other ports", nft("accept", nftLine("input", portMap)), flow{"eth0", false, "udp", 67}, no, ""},
		{"a verdict map with a name", nft("accept", nftLine("input", namedMap)), tftp, no, ""},
		{"on the device, before all", ingress("eth0"), tftp, yes, "nft netdev f in"},
		{"on a device that is not named", strings.Replace(ingress("eth0"), `"dev":"eth0",`, "", 1), tftp, perhaps, "nft netdev f in"},
		{"on another device", ingress("eth1"), tftp, no, ""},
		{"what is no question of this protocol", nft("accept", nftLine("input", `{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"flags"}},"right":"syn"}}`, drop)), tftp, no, ""},
		{"a loop of jumps ends", nft("accept", nftLine("input", jump), nftLine("more", jump)), tftp, no, ""},
	} {
		r, err := parseNft([]byte(c.rules))
		if err != nil {
			t.Fatal(c.name, err)
		}
		if got, why := r.verdict(c.flow); got != c.want || !strings.Contains(why, c.why) {
			t.Errorf("%s: %v by %q, want %v by %q", c.name, got, why, c.want, c.why)
		}
	}
	if _, err := parseNft([]byte("no json")); err == nil {
		t.Error("what is no JSON is read")
	}
}

func TestIptablesRulesThatDropAreFound(t *testing.T) {
	tftp := flow{"eth0", false, "udp", 69}
	for _, c := range []struct {
		name, rules string
		want        answer
	}{
		{"policy", ":INPUT DROP [0:0]\n", yes},
		{"accept", ":INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 69 -j DROP\n", no},
		{"drop", ":INPUT ACCEPT [0:0]\n-A INPUT -p udp -m udp --dport 69 -j DROP\n", yes},
		{"drop of a range", ":INPUT ACCEPT [0:0]\n-A INPUT -p udp -m multiport --dports 53,60:70 -j REJECT --reject-with icmp-port-unreachable\n", yes},
		{"allowed", ":INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -i eth+ -p udp -m udp --dport 69 -j ACCEPT\n", no},
		{"allowed elsewhere", ":INPUT DROP [0:0]\n-A INPUT ! -i eth0 -j ACCEPT\n", yes},
		{"perhaps", ":INPUT DROP [0:0]\n-A INPUT -s 10.0.0.0/8 -j ACCEPT\n", perhaps},
		{"a chain", ":INPUT ACCEPT [0:0]\n:wall - [0:0]\n-A INPUT -j wall\n-A wall -p udp -j DROP\n", yes},
	} {
		if got, why := parseIptables("ip", c.rules).verdict(tftp); got != c.want {
			t.Errorf("%s: %v by %q, want %v", c.name, got, why, c.want)
		}
	}
}

func TestIP6tablesRulesThatDropAreFound(t *testing.T) {
	tftp, nd := flow{"eth0", true, "udp", 69}, flow{"eth0", true, protoND, 0}
	for _, c := range []struct {
		name, rules string
		flow        flow
		want        answer
	}{
		{"policy", ":INPUT DROP [0:0]\n", tftp, yes},
		{"allowed", ":INPUT DROP [0:0]\n-A INPUT -p udp -m udp --dport 69 -j ACCEPT\n", tftp, no},
		{"neighbours forgotten", ":INPUT DROP [0:0]\n-A INPUT -p udp -m udp --dport 69 -j ACCEPT\n", nd, yes},
		{"neighbours", ":INPUT DROP [0:0]\n-A INPUT -p ipv6-icmp -j ACCEPT\n", nd, no},
		{"neighbours by type", ":INPUT DROP [0:0]\n-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT\n", nd, no},
		{"others by type", ":INPUT DROP [0:0]\n-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT\n", nd, yes},
		{"an IPv4 flow is not its", ":INPUT DROP [0:0]\n", flow{"eth0", false, "udp", 69}, no},
	} {
		if got, why := parseIptables("ip6", c.rules).verdict(c.flow); got != c.want {
			t.Errorf("%s: %v by %q, want %v", c.name, got, why, c.want)
		}
	}
}

func FuzzParseRulesets(f *testing.F) {
	f.Add(nft("drop", nftLine("input", jump), nftLine("more", dportSet, drop)))
	f.Add(":INPUT DROP [0:0]\n-A INPUT ! -i eth+ -p udp -m multiport --dports 1:,69 -j wall\n:wall - \n-A wall -j wall\n")
	f.Add(nft("drop", nftLine("input", stateMap), nftLine("input", portMap), nftLine("input", ndSolicit, accept)))
	f.Add(ingress("eth0"))
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := parseNft([]byte(text)); err == nil {
			r.verdict(flow{"eth0", false, "udp", 69})
			r.verdict(flow{"eth0", true, protoND, 0})
		}
		parseIptables("ip", text).verdict(flow{"eth0", true, "tcp", 8080})
	})
}
