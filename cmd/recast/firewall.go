package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// ruleset is what a host's packet filter does to packets that come in, as far as
// doctor understands it.
type ruleset struct {
	base   []*filterChain // hooked into the way in, in their order
	chains map[string]*filterChain
}

type filterChain struct {
	name   string   // table and chain
	family string   // ip, ip6, inet or netdev
	devs   []string // of netdev: where it is hooked in
	prio   int
	policy string // accept or drop; "" for one that is no base chain
	rules  []filterRule
}

// filterRule applies where every match holds. One that we do not understand may
// hold or not.
type filterRule struct {
	text    string // for people
	matches []filterMatch
	verdict string // accept, drop, reject, return, jump, goto; "" goes on
	target  string // of jump and goto
}

type filterMatch func(flow) answer

// flow is the first packet of a conversation with us.
type flow struct {
	iface string
	six   bool
	proto string // udp or tcp; ipv6-icmp is a neighbour solicitation
	port  int
}

func (f flow) String() string {
	switch {
	case f.proto == protoND:
		return "neighbour solicitations"
	case f.six:
		return fmt.Sprintf("%s port %d over IPv6", f.proto, f.port)
	}
	return fmt.Sprintf("%s port %d", f.proto, f.port)
}

func (f flow) on() string {
	if f.iface == "" {
		return ""
	}
	return " on " + f.iface
}

// protoND stands for IPv6's neighbour discovery, without which nothing arrives
// (RFC 4890 section 4.4.1).
const protoND = "ipv6-icmp"

// passes tells whether a chain's packets are such.
func (c *filterChain) passes(f flow) bool {
	switch c.family {
	case "ip":
		return !f.six
	case "ip6":
		return f.six
	case "netdev":
		return f.iface == "" || len(c.devs) == 0 || slices.Contains(c.devs, f.iface)
	}
	return true
}

type answer int

const (
	no answer = iota
	perhaps
	yes
)

// verdict of a ruleset over a flow. why names the rule that decided.
func (r ruleset) verdict(f flow) (dropped answer, why string) {
	for _, c := range r.base {
		if !c.passes(f) {
			continue
		}
		d, by := r.walk(c, f)
		if d == yes && c.family == "netdev" && len(c.devs) == 0 {
			d = perhaps // nft 1.0.6 does not say where
		}
		switch {
		case d == yes:
			return yes, by
		case d == perhaps && dropped == no:
			dropped, why = perhaps, by
		}
	}
	return dropped, why
}

// walk goes through a base chain and those it jumps to. A drop that stands behind
// something we do not understand is a perhaps, and so is an accept before it.
func (r ruleset) walk(c *filterChain, f flow) (dropped answer, why string) {
	budget := 100_000 // rules; no ruleset that a person keeps has more
	end, by, doubt := r.rules(c, f, &budget)
	if end == "" && c.policy == "drop" {
		end, by = "drop", "the policy of "+c.name
	}
	switch {
	case end == "drop" && doubt == "":
		return yes, by
	case end == "drop":
		return perhaps, by
	case doubt == "drop":
		return perhaps, by
	}
	return no, ""
}

// rules of one chain: how they end ("accept", "drop", "" at their end), by which
// rule, and what may have happened before ("drop", "accept" or "").
func (r ruleset) rules(c *filterChain, f flow, budget *int) (end, by, doubt string) {
	doubtBy := ""
	doubted := func(what, rule string) {
		if doubt != "drop" {
			doubt, doubtBy = what, rule
		}
	}
	for _, rule := range c.rules {
		if *budget--; *budget < 0 {
			return "", doubtBy, doubt
		}
		holds := yes
		for _, m := range rule.matches {
			holds = min(holds, m(f))
		}
		if holds == no {
			continue
		}
		what, ruleBy := rule.verdict, c.name+": "+rule.text
		switch what {
		case "jump", "goto":
			next := r.chains[rule.target]
			if next == nil {
				continue
			}
			var inner string
			what, ruleBy, inner = r.rules(next, f, budget)
			if inner != "" {
				doubted(inner, ruleBy)
			}
			if what == "" && rule.verdict == "goto" {
				what = "return"
			}
		case "reject":
			what = "drop"
		}
		switch {
		case what == "" || what == "return" && holds == perhaps:
		case holds == perhaps:
			doubted(what, ruleBy)
		case what == "return":
			return "", doubtBy, doubt
		case what == "drop" && doubt == "accept", what == "drop" && doubt == "":
			return "drop", ruleBy, doubt
		default:
			if doubt == "drop" {
				return what, doubtBy, doubt
			}
			return what, ruleBy, doubt
		}
	}
	return "", doubtBy, doubt
}

// parseNft reads what "nft --json list ruleset" prints.
func parseNft(raw []byte) (ruleset, error) {
	var doc struct {
		Nftables []struct {
			Chain *struct {
				Family, Table, Name, Type, Hook, Policy string
				Prio                                    int
				Dev                                     any // a name, or several
			}
			Rule *struct {
				Family, Table, Chain string
				Expr                 []map[string]json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return ruleset{}, fmt.Errorf("read nft's answer: %w", err)
	}
	r := ruleset{chains: map[string]*filterChain{}}
	ours := func(family string) bool { return slices.Contains([]string{"ip", "ip6", "inet", "netdev"}, family) }
	early := map[string]int{"ingress": 2 << 20, "prerouting": 1 << 20, "input": 0} // come before, whatever their priority
	for _, o := range doc.Nftables {
		if c := o.Chain; c != nil && ours(c.Family) {
			chain := &filterChain{name: fmt.Sprintf("nft %s %s %s", c.Family, c.Table, c.Name), family: c.Family, prio: c.Prio}
			switch dev := c.Dev.(type) {
			case string:
				chain.devs = []string{dev}
			case []any:
				for _, d := range dev {
					chain.devs = append(chain.devs, fmt.Sprint(d))
				}
			}
			r.chains[c.Family+" "+c.Table+" "+c.Name] = chain
			if before, in := early[c.Hook]; in && c.Type == "filter" {
				chain.policy = c.Policy
				chain.prio -= before
				r.base = append(r.base, chain)
			}
		}
	}
	sort.SliceStable(r.base, func(i, j int) bool { return r.base[i].prio < r.base[j].prio })
	for _, o := range doc.Nftables {
		if o.Rule == nil || !ours(o.Rule.Family) {
			continue
		}
		table := o.Rule.Family + " " + o.Rule.Table + " "
		if c := r.chains[table+o.Rule.Chain]; c != nil {
			c.rules = append(c.rules, nftRules(table, o.Rule.Expr)...)
		}
	}
	return r, nil
}

// nftRules are one rule, or one for each element where it ends in a verdict map.
func nftRules(table string, exprs []map[string]json.RawMessage) []filterRule {
	var r filterRule
	for _, e := range exprs {
		for key, raw := range e {
			switch key {
			case "match":
				m, text := nftMatch(raw)
				r.matches = append(r.matches, m)
				r.text += text + " "
			case "vmap":
				if all := r.vmap(table, raw); all != nil {
					return all
				}
				r.matches = append(r.matches, func(flow) answer { return perhaps })
				r.text += "vmap … "
			case "counter", "log", "comment":
			default:
				if r.end(table, key, raw) {
					continue
				}
				// xt, limit, fib …
				r.matches = append(r.matches, func(flow) answer { return perhaps })
				r.text += key + " … "
			}
		}
	}
	r.text = strings.TrimSpace(r.text)
	return []filterRule{r}
}

// end takes a verdict.
func (r *filterRule) end(table, key string, raw json.RawMessage) bool {
	switch key {
	case "accept", "drop", "reject", "return":
		r.verdict = key
		r.text += key
	case "jump", "goto":
		var to struct{ Target string }
		_ = json.Unmarshal(raw, &to)
		r.verdict, r.target = key, table+to.Target
		r.text += key + " " + to.Target
	default:
		return false
	}
	return true
}

// vmap is a rule for each element of a verdict map; nil where it has a name, or
// is beyond us.
func (r *filterRule) vmap(table string, raw json.RawMessage) (all []filterRule) {
	var v struct {
		Key  json.RawMessage
		Data struct {
			Set [][]json.RawMessage
		}
	}
	if json.Unmarshal(raw, &v) != nil {
		return nil
	}
	for _, e := range v.Data.Set {
		var verdict map[string]json.RawMessage
		if len(e) != 2 || json.Unmarshal(e[1], &verdict) != nil {
			return nil
		}
		pair, err := json.Marshal(map[string]any{"op": "==", "left": v.Key, "right": e[0]})
		if err != nil {
			return nil
		}
		m, text := nftMatch(pair)
		one := filterRule{text: r.text + text + " ", matches: append(slices.Clone(r.matches), m)}
		for key, raw := range verdict {
			one.end(table, key, raw)
		}
		one.text = strings.TrimSpace(one.text)
		all = append(all, one)
	}
	return all
}

// nftMatch understands interfaces, protocols, destination ports and connection
// states; everything else may hold.
func nftMatch(raw json.RawMessage) (filterMatch, string) {
	var m struct {
		Op   string
		Left struct {
			Payload *struct{ Protocol, Field string }
			Meta    *struct{ Key string }
			CT      *struct{ Key string }
		}
		Right json.RawMessage
	}
	dunno := func(flow) answer { return perhaps }
	if json.Unmarshal(raw, &m) != nil { // a concatenation, a set on the left
		return dunno, "…"
	}
	not := m.Op == "!="
	is := func(what string, in func(string) bool) answer {
		if what == "" {
			return perhaps
		}
		if in(what) != not {
			return yes
		}
		return no
	}
	in, text, known := nftValues(m.Right)
	if !known {
		in = nil
	}
	switch l := m.Left; {
	case l.Payload != nil && l.Payload.Field == "dport":
		proto := l.Payload.Protocol // udp, tcp, or th: either
		return func(f flow) answer {
			switch {
			case proto != "th" && proto != f.proto:
				return no
			case in == nil:
				return perhaps
			}
			return is(strconv.Itoa(f.port), in)
		}, fmt.Sprintf("%s dport %s%s", proto, map[bool]string{true: "!= "}[not], text)
	case l.Payload != nil && (l.Payload.Protocol == "udp" || l.Payload.Protocol == "tcp"):
		return func(f flow) answer { return perhapsOf(l.Payload.Protocol == f.proto) }, l.Payload.Protocol + " …"
	case l.Payload != nil && l.Payload.Protocol == "icmp":
		return func(flow) answer { return no }, "icmp …"
	case l.Payload != nil && l.Payload.Protocol == "icmpv6":
		return func(f flow) answer {
			switch {
			case f.proto != protoND:
				return no
			case in == nil || l.Payload.Field != "type":
				return perhaps
			}
			return is("nd-neighbor-solicit", in)
		}, "icmpv6 " + l.Payload.Field + " " + text
	case l.Payload != nil && l.Payload.Protocol == "ip6" && l.Payload.Field == "nexthdr" && in != nil:
		return func(f flow) answer {
			if !f.six {
				return no
			}
			return is(f.proto, in)
		}, "nexthdr " + text
	case l.Payload != nil && l.Payload.Protocol == "ip6":
		return func(f flow) answer { return perhapsOf(f.six) }, "ip6 " + l.Payload.Field + " " + text
	case l.Payload != nil && l.Payload.Protocol == "ip" && l.Payload.Field != "protocol":
		return func(f flow) answer { return perhapsOf(!f.six) }, "ip " + l.Payload.Field + " " + text
	case in == nil:
	case l.Meta != nil && l.Meta.Key == "nfproto":
		return func(f flow) answer { return is(map[bool]string{true: "ipv6", false: "ipv4"}[f.six], in) }, "nfproto " + text
	case l.Payload != nil && l.Payload.Protocol == "ip" && l.Payload.Field == "protocol", l.Meta != nil && l.Meta.Key == "l4proto":
		return func(f flow) answer {
			if l.Payload != nil && f.six {
				return no
			}
			return is(f.proto, in)
		}, "protocol " + text
	case l.Meta != nil && (l.Meta.Key == "iifname" || l.Meta.Key == "iif"):
		return func(f flow) answer { return is(f.iface, in) }, "iif " + text
	case l.CT != nil && l.CT.Key == "state":
		return func(flow) answer { return is("new", in) }, "ct state " + text
	}
	return dunno, "…"
}

func perhapsOf(b bool) answer {
	if b {
		return perhaps
	}
	return no
}

// nftValues is a test for the right side of a match: a value, a list, a set, a
// range. Named sets are not looked up.
func nftValues(raw json.RawMessage) (in func(string) bool, text string, known bool) {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return nil, "…", false
	}
	var walk func(any) (func(string) bool, string, bool)
	walk = func(v any) (func(string) bool, string, bool) {
		switch v := v.(type) {
		case string:
			if strings.HasPrefix(v, "@") || strings.HasSuffix(v, "*") {
				return nil, v, false
			}
			if v == "icmpv6" {
				v = protoND // either name, by the version
			}
			return func(s string) bool { return s == v }, v, true
		case float64:
			n := strconv.Itoa(int(v))
			return func(s string) bool { return s == n }, n, true
		case []any:
			var tests []func(string) bool
			var texts []string
			for _, e := range v {
				t, text, ok := walk(e)
				if !ok {
					return nil, text, false
				}
				tests, texts = append(tests, t), append(texts, text)
			}
			return func(s string) bool { return slices.ContainsFunc(tests, func(t func(string) bool) bool { return t(s) }) }, strings.Join(texts, ","), true
		case map[string]any:
			if set, ok := v["set"]; ok {
				return walk(set)
			}
			if r, ok := v["range"].([]any); ok && len(r) == 2 {
				lo, ok1 := r[0].(float64)
				hi, ok2 := r[1].(float64)
				return func(s string) bool {
					n, err := strconv.Atoi(s)
					return err == nil && n >= int(lo) && n <= int(hi)
				}, fmt.Sprintf("%d-%d", int(lo), int(hi)), ok1 && ok2
			}
		}
		return nil, "…", false
	}
	return walk(v)
}

// parseIptables reads what "iptables-legacy-save -t filter" prints, or, as family
// ip6, ip6tables-legacy-save.
func parseIptables(family, text string) ruleset {
	r := ruleset{chains: map[string]*filterChain{}}
	program := map[string]string{"ip": "iptables ", "ip6": "ip6tables "}[family]
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 2 && strings.HasPrefix(f[0], ":"):
			c := &filterChain{name: program + f[0][1:], family: family}
			r.chains[f[0][1:]] = c
			if f[0] == ":INPUT" {
				c.policy = strings.ToLower(f[1])
				r.base = append(r.base, c)
			}
		case len(f) >= 2 && f[0] == "-A" && r.chains[f[1]] != nil:
			rule := iptablesRule(f[2:])
			rule.text = strings.Join(f[2:], " ")
			r.chains[f[1]].rules = append(r.chains[f[1]].rules, rule)
		}
	}
	return r
}

func iptablesRule(args []string) (r filterRule) {
	dunno := func(flow) answer { return perhaps }
	not := false
	for i := 0; i < len(args); i++ {
		if args[i] == "!" {
			not = true
			continue
		}
		value := ""
		if i+1 < len(args) {
			value = args[i+1]
		}
		test := func(of func(flow) string, in func(string) bool) {
			no := not
			r.matches = append(r.matches, func(f flow) answer {
				if of(f) == "" {
					return perhaps
				}
				return map[bool]answer{true: yes}[in(of(f)) != no]
			})
		}
		switch args[i] {
		case "-p":
			test(func(f flow) string { return f.proto }, func(s string) bool {
				return s == value || value == "all" || value == "icmpv6" && s == protoND
			})
		case "--icmpv6-type":
			if value != "135" && value != "neighbour-solicitation" && value != "neighbor-solicitation" {
				r.matches = append(r.matches, func(f flow) answer { return no })
			}
		case "-i":
			test(func(f flow) string { return f.iface }, func(s string) bool {
				prefix, wild := strings.CutSuffix(value, "+")
				return s == value || wild && strings.HasPrefix(s, prefix)
			})
		case "--dport", "--dports":
			test(func(f flow) string { return strconv.Itoa(f.port) }, func(s string) bool {
				n, _ := strconv.Atoi(s)
				for _, part := range strings.Split(value, ",") {
					lo, hi, span := strings.Cut(part, ":")
					a, _ := strconv.Atoi(lo)
					b, _ := strconv.Atoi(hi)
					if n == a || span && n >= a && (n <= b || hi == "") {
						return true
					}
				}
				return false
			})
		case "--ctstate", "--state":
			test(func(flow) string { return "NEW" }, func(s string) bool { return slices.Contains(strings.Split(value, ","), s) })
		case "-j", "-g":
			switch value {
			case "ACCEPT", "DROP", "REJECT", "RETURN":
				r.verdict = strings.ToLower(value)
			case "LOG", "NFLOG", "MARK":
			default:
				r.verdict, r.target = "jump", value
			}
			return r // what follows belongs to the target
		case "-m", "--comment":
			if value == "limit" || value == "set" || value == "string" || value == "recent" {
				r.matches = append(r.matches, dunno)
			}
		default:
			r.matches = append(r.matches, dunno)
		}
		not = false
		i++
	}
	return r
}
