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

func TestNftRulesThatDropAreFound(t *testing.T) {
	tftp, http := flow{"eth0", "udp", 69}, flow{"eth0", "tcp", 8080}
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
		{"allowed on another interface", nft("drop", nftLine("input", onEth0, accept)), flow{"eth1", "udp", 69}, yes, "policy"},
		{"perhaps allowed", nft("drop", nftLine("input", fromSome, accept)), tftp, perhaps, "policy"},
		{"perhaps dropped", nft("accept", nftLine("input", fromSome, dport69, drop)), tftp, perhaps, "udp dport 69 drop"},
		{"perhaps dropped, then accepted", nft("accept", nftLine("input", fromSome, drop), nftLine("input", dport69, accept)), tftp, perhaps, "drop"},
		{"dropped behind a jump", nft("accept", nftLine("input", jump), nftLine("more", dport69, drop)), tftp, yes, "nft inet f more: udp dport 69 drop"},
		{"accepted behind a jump", nft("drop", nftLine("input", jump), nftLine("more", dport69, accept)), tftp, no, ""},
		{"a jump that comes back", nft("drop", nftLine("input", jump), nftLine("more", tcp22, accept)), tftp, yes, "policy"},
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
	tftp := flow{"eth0", "udp", 69}
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
		if got, why := parseIptables(c.rules).verdict(tftp); got != c.want {
			t.Errorf("%s: %v by %q, want %v", c.name, got, why, c.want)
		}
	}
}

func FuzzParseRulesets(f *testing.F) {
	f.Add(nft("drop", nftLine("input", jump), nftLine("more", dportSet, drop)))
	f.Add(":INPUT DROP [0:0]\n-A INPUT ! -i eth+ -p udp -m multiport --dports 1:,69 -j wall\n:wall - \n-A wall -j wall\n")
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := parseNft([]byte(text)); err == nil {
			r.verdict(flow{"eth0", "udp", 69})
		}
		parseIptables(text).verdict(flow{"eth0", "tcp", 8080})
	})
}
