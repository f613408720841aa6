package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// hardware finds what may exist once only: MAC, address, BMC, UUID, serial.
type hardware map[string]owner

type owner struct {
	machine string
	place
}

func newHardware() hardware { return hardware{} }

// claim notes a duplicate and reports whether the value was free.
func (h hardware) claim(s scope, machine, what, value string, line int, field string) bool {
	key := what + " " + value
	if first, ok := h[key]; ok {
		s.problem(line, field, fmt.Sprintf("the %s %s is declared twice, first by machine %q at %s", what, value, first.machine, first.place), "correct one of them")
		return false
	}
	h[key] = owner{machine, place{s.file, line}}
	return true
}

// claimAddr is claim of an address.
func (h hardware) claimAddr(s scope, machine string, a netip.Addr, line int, field string) bool {
	ok := h.claim(s, machine, "address", a.String(), line, field)
	if ok {
		s.b.set.reservedAt[a] = spot{place{s.file, line}, field}
	}
	return ok
}

func (b *builder) buildMachine(d *declared[rawMachine], hw hardware) {
	raw := d.Spec
	m := &Machine{
		Name: d.Metadata.Name.V, Arch: Arch(cmp.Or(raw.Arch.V, string(AMD64))),
		Firmware: Firmware(raw.Firmware.V), Serial: raw.Serial.V, Protected: raw.Protected.V,
		Location: Location{Site: raw.Location.Site.V, Rack: raw.Location.Rack.V, Unit: raw.Location.Unit.V},
	}
	d.buildLabels(m)
	for _, f := range []struct {
		field string
		t     text
	}{{"site", raw.Location.Site}, {"rack", raw.Location.Rack}} {
		if f.t.given() && !labelGrammar.MatchString(f.t.V) {
			d.problem(f.t.Line, "spec.location."+f.field, fmt.Sprintf("bad value %q", f.t.V), labelRule)
		}
	}
	if u := raw.Location.Unit; u.given() && (u.V < 1 || u.V > 999) {
		d.problem(u.Line, "spec.location.unit", fmt.Sprintf("there is no unit %d", u.V), "want 1 to 999")
	}
	if t := raw.Serial; t.given() {
		if why := badSerial(t.V); why != "" {
			d.problem(t.Line, "spec.serial", why, "copy it as dmidecode -s system-serial-number prints it")
		} else {
			hw.claim(d.scope, m.Name, "serial", t.V, t.Line, "spec.serial")
		}
	}
	if t := raw.UUID; t.given() {
		m.UUID = strings.ToLower(t.V)
		if !uuidGrammar.MatchString(m.UUID) {
			d.problem(t.Line, "spec.uuid", fmt.Sprintf("bad uuid %q", t.V), "want 8-4-4-4-12 hex digits as dmidecode -s system-uuid prints it")
		} else {
			hw.claim(d.scope, m.Name, "uuid", m.UUID, t.Line, "spec.uuid")
		}
	}
	if raw.NICs != nil && len(raw.NICs) == 0 {
		d.problem(0, "spec.nics", "a machine without a network interface cannot boot from the network", "add the one it boots from")
	}
	for i, n := range raw.NICs {
		if nic, ok := d.buildNIC(m, i, n, hw); ok {
			m.NICs = append(m.NICs, nic)
		}
	}
	m.BMC = d.buildBMC(m, raw.BMC, hw)
	d.refers(raw.Model, "spec.model", "Model")
	m.Boot, m.SecureBoot = d.buildBoot(raw.Boot), raw.SecureBoot.V
	if model := b.model[raw.Model.V]; model != nil {
		m.Boot = m.Boot.over(model.Boot)
	}
	d.checkBoot(m, raw)
	if d.named {
		b.set.Machines = append(b.set.Machines, m)
	}
}

func (d *declared[S]) buildLabels(m *Machine) {
	for _, e := range d.Metadata.Labels {
		field := "metadata.labels." + e.Key
		if !labelGrammar.MatchString(e.Key) {
			d.problem(e.KeyLine, field, fmt.Sprintf("bad label name %q", e.Key), labelRule)
			continue
		}
		if !labelGrammar.MatchString(e.Value.V) {
			d.problem(e.Value.Line, field, fmt.Sprintf("bad label value %q", e.Value.V), labelRule)
			continue
		}
		// A location field is selected like a label, so the two must not differ.
		if loc := m.Field(e.Key); loc != "" && loc != e.Value.V {
			d.problem(e.Value.Line, field, fmt.Sprintf("the label says %q, spec.location.%s says %q", e.Value.V, e.Key, loc), "make them equal or remove one")
			continue
		}
		if m.Labels == nil {
			m.Labels = make(map[string]string, len(d.Metadata.Labels))
		}
		m.Labels[e.Key] = e.Value.V
	}
}

func badSerial(s string) string {
	if s == "" || len(s) > 64 || strings.TrimSpace(s) != s {
		return fmt.Sprintf("bad serial %q", s)
	}
	for _, r := range s {
		if r < ' ' || r > '~' {
			return fmt.Sprintf("the serial %q holds a character that is not printable ASCII", s)
		}
	}
	return ""
}

func (s scope) buildNIC(m *Machine, i int, raw rawNIC, hw hardware) (NIC, bool) {
	at := "spec.nics[" + strconv.Itoa(i) + "]."
	nic := NIC{Network: raw.Network.V, Port: s.buildPort(m.Name, raw.Port, raw.Network, at)}
	ok := nic.Port != nil
	switch {
	case !raw.MAC.given() && raw.Port.Line == 0:
		s.problem(raw.Line, at+"mac", "missing", "add it, such as \"52:54:00:00:00:05\", or the port it is plugged into")
	case !raw.MAC.given():
		for _, other := range m.NICs {
			if other.MAC == "" {
				s.problem(raw.Line, at+"mac", "a second interface without a hardware address", "only the one it boots from is learned: give the mac of the others")
			}
		}
	}
	if raw.MAC.given() {
		mac, err := ParseMAC(raw.MAC.V)
		switch {
		case err != nil:
			s.fail(raw.MAC.Line, at+"mac", err)
		case notEthernet(mac):
			s.problem(raw.MAC.Line, at+"mac", fmt.Sprintf("%q is not the address of one Ethernet interface", raw.MAC.V), "want six pairs of hex digits such as 52:54:00:00:00:05, as the machine shows it")
		default:
			ok = hw.claim(s, m.Name, "hardware address", string(mac), raw.MAC.Line, at+"mac")
			nic.MAC = mac
		}
	}
	s.refers(raw.Network, at+"network", "Network")
	n := s.b.network[raw.Network.V] // nil where it was refused
	if n != nil {
		if nic.VLAN = n.VLAN; n.DHCP != DHCPAuthoritative {
			nic.Routes = n.Routes
		}
	}
	field, given := "ip", raw.IP.given()
	if n != nil && n.Subnet.Addr().Is6() {
		field, given = "ip6", raw.IP6.given()
	}
	if n != nil && !given && n.DHCP == DHCPAuthoritative && !s.b.pooled[n.Name] {
		s.problem(raw.Network.Line, at+field, fmt.Sprintf("network %q has no pool, so this interface would never get an address", n.Name), "give it an "+field+", or the Network a pool")
	}
	if raw.IP6.given() {
		ok = s.buildIP6(m, &nic, raw.IP6, n, at+"ip6", hw) && ok
	}
	if !raw.IP.given() {
		return nic, ok
	}
	a, err := parseAddr4(raw.IP.V)
	if err != nil {
		s.fail(raw.IP.Line, at+"ip", err)
		return nic, ok
	}
	if !raw.Network.given() {
		s.problem(raw.IP.Line, at+"network", fmt.Sprintf("the address %s is on no network", a), "name the Network it lies in")
		return nic, ok
	}
	if n != nil && !s.reservable(n, a, raw.IP.Line, at+"ip") {
		return nic, ok
	}
	nic.IP = a
	return nic, hw.claimAddr(s, m.Name, a, raw.IP.Line, at+"ip") && ok
}

// buildIP6 takes an interface's IPv6 address: beside an IPv4 Network, its own is
// found by the address.
func (s scope) buildIP6(m *Machine, nic *NIC, t text, on *Network, field string, hw hardware) bool {
	a, err := parseAddr6(t.V)
	if err != nil {
		s.fail(t.Line, field, err)
		return true
	}
	n := on
	if n == nil || n.Subnet.Addr().Is4() {
		if n = s.networkOf(a); n == nil {
			s.problem(t.Line, field, fmt.Sprintf("the address %s is on no declared network", a), "declare the Network of its subnet")
			return true
		}
	}
	if !s.reservable(n, a, t.Line, field) {
		return true
	}
	switch {
	case on == nil:
		nic.VLAN = n.VLAN
	case on.VLAN != n.VLAN:
		s.problem(t.Line, field, fmt.Sprintf("network %q has vlan %d and network %q vlan %d: one interface has one tag", on.Name, on.VLAN, n.Name, n.VLAN), "give both Networks of the link the same vlan")
		return true
	}
	nic.IP6 = a
	return hw.claimAddr(s, m.Name, a, t.Line, field)
}

// networkOf is the declared Network whose subnet holds the address, or nil.
func (s scope) networkOf(a netip.Addr) *Network {
	for _, n := range s.b.set.Networks {
		if n.Subnet.Contains(a) {
			return n
		}
	}
	return nil
}

func (s scope) buildBMC(m *Machine, raw rawBMC, hw hardware) *BMCRef {
	if raw.Line == 0 {
		return nil
	}
	ref := &BMCRef{URL: raw.URL.V, Credentials: raw.Credentials.V, CipherSuite: raw.CipherSuite.V}
	if t := raw.Credentials; t.given() {
		if err := CheckName(t.V); err != nil {
			s.problem(t.Line, "spec.bmc.credentials", err.Error(), "it is the name of a secret, never its value")
		} else {
			s.b.refs = append(s.b.refs, SecretRef{Name: t.V, File: s.file, Line: t.Line, Field: "spec.bmc.credentials"})
		}
	}
	s.buildReservation(m, ref, raw, hw)
	if !raw.URL.given() {
		return ref
	}
	scheme, key, err := parseBMC(raw.URL.V)
	if err != nil {
		s.fail(raw.URL.Line, "spec.bmc.url", err)
		return ref
	}
	hw.claimBMC(s, m.Name, raw.URL.V, key, raw.URL.Line)
	if t := raw.Pin; t.given() {
		if ref.Pin, err = ParseDigest(t.V); err != nil {
			s.fail(t.Line, "spec.bmc.pin", err)
		} else if scheme != "redfish" {
			s.problem(t.Line, "spec.bmc.pin", "IPMI has no certificate to pin", "remove it")
		}
	}
	if t := raw.HostKey; t.given() {
		switch ref.HostKey = t.V; {
		case !hostKey.MatchString(t.V):
			s.problem(t.Line, "spec.bmc.hostKey", fmt.Sprintf("%q is not the fingerprint of a host key", t.V), "want SHA256: and 43 characters, as ssh-keyscan HOST | ssh-keygen -lf - shows it")
		case scheme != "redfish":
			s.problem(t.Line, "spec.bmc.hostKey", "a BMC by IPMI has its console there, not by SSH", "remove it")
		}
	}
	if n := raw.CipherSuite; n.given() {
		if scheme != "ipmi" {
			s.problem(n.Line, "spec.bmc.cipherSuite", "Redfish has no cipher suite", "remove it")
		} else if n.V != 17 && n.V != 3 {
			s.problem(n.Line, "spec.bmc.cipherSuite", fmt.Sprintf("cipher suite %d is not accepted", n.V), "want 17, or 3 where the BMC knows nothing better")
		}
	}
	return ref
}

// hostKey is a fingerprint as OpenSSH writes it.
var hostKey = regexp.MustCompile(`^SHA256:[A-Za-z0-9+/]{43}$`)

// buildReservation is the BMC's address by DHCP: a new rack's BMCs have no other.
func (s scope) buildReservation(m *Machine, ref *BMCRef, raw rawBMC, hw hardware) {
	switch {
	case !raw.MAC.given() && !raw.IP.given() && !raw.IP6.given():
		return
	case !raw.IP.given() && !raw.IP6.given():
		s.problem(raw.MAC.Line, "spec.bmc.ip", "a hardware address alone reserves nothing", "give its ip too, or remove mac")
		return
	case !raw.MAC.given():
		s.problem(cmp.Or(raw.IP.Line, raw.IP6.Line), "spec.bmc.mac", "an address is reserved for a hardware address", "give its mac too, or remove ip")
		return
	}
	mac, err := ParseMAC(raw.MAC.V)
	switch {
	case err != nil:
		s.fail(raw.MAC.Line, "spec.bmc.mac", err)
		return
	case notEthernet(mac):
		s.problem(raw.MAC.Line, "spec.bmc.mac", fmt.Sprintf("%q is not the address of one Ethernet interface", raw.MAC.V), "want six pairs of hex digits such as 52:54:00:00:00:05, as its label shows it")
		return
	}
	var ip, ip6 netip.Addr
	good := true
	if raw.IP.given() {
		ip = s.reservedBMC(raw, raw.IP, "ip", parseAddr4)
		good = ip.IsValid()
	}
	if raw.IP6.given() {
		ip6 = s.reservedBMC(raw, raw.IP6, "ip6", parseAddr6)
		good = good && ip6.IsValid()
	}
	if good && hw.claim(s, m.Name, "hardware address", string(mac), raw.MAC.Line, "spec.bmc.mac") &&
		(!ip.IsValid() || hw.claimAddr(s, m.Name, ip, raw.IP.Line, "spec.bmc.ip")) &&
		(!ip6.IsValid() || hw.claimAddr(s, m.Name, ip6, raw.IP6.Line, "spec.bmc.ip6")) {
		ref.MAC, ref.IP, ref.IP6 = mac, ip, ip6
	}
}

// reservedBMC is one address of the reservation; the zero value where it was refused.
func (s scope) reservedBMC(raw rawBMC, t text, name string, parse func(string) (netip.Addr, error)) netip.Addr {
	field := "spec.bmc." + name
	a, err := parse(t.V)
	if err != nil {
		s.fail(t.Line, field, err)
		return netip.Addr{}
	}
	n := s.networkOf(a)
	switch {
	case n == nil:
		s.problem(t.Line, field, fmt.Sprintf("the address %s is on no declared network", a), "declare its Network with dhcp: authoritative")
		return netip.Addr{}
	case n.DHCP != DHCPAuthoritative:
		s.problem(t.Line, field, fmt.Sprintf("network %q has dhcp: %s, where recast gives no addresses", n.Name, n.DHCP), "remove mac and "+name+", or set dhcp: authoritative")
		return netip.Addr{}
	}
	if !s.reservable(n, a, t.Line, field) {
		return netip.Addr{}
	}
	// The URL may go through a forwarder elsewhere; beside the reservation it is a slip.
	if host, err := parse(hostOf(raw.URL.V)); err == nil && host != a && n.Subnet.Contains(host) {
		s.problem(t.Line, field, fmt.Sprintf("the url says %s, the reservation %s", host, a), "make them equal")
		return netip.Addr{}
	}
	return a
}

// reservable reports whether an address of the network may be somebody's own.
func (s scope) reservable(n *Network, a netip.Addr, line int, field string) bool {
	switch why := notHost(n.Subnet, a); {
	case why != "":
		s.problem(line, field, why+" of network "+strconv.Quote(n.Name), hostRange(n.Subnet))
		return false
	case n.Pool != nil && n.Pool.Contains(a):
		s.problem(line, field, fmt.Sprintf("the address %s lies in the pool %s-%s of network %q, which is for undeclared machines", a, n.Pool.First, n.Pool.Last, n.Name), "choose one outside it")
	case a == n.Gateway:
		s.problem(line, field, fmt.Sprintf("%s is the gateway of network %q", a, n.Name), "choose another address")
	}
	return true
}

// claimBMC: two machines behind one BMC would switch each other's power.
func (h hardware) claimBMC(s scope, machine, url, key string, line int) {
	if first, ok := h["bmc "+key]; ok {
		s.problem(line, "spec.bmc.url", fmt.Sprintf("the BMC %q is declared twice, first by machine %q at %s", url, first.machine, first.place), "correct one of them, or name the system each one is")
		return
	}
	h["bmc "+key] = owner{machine, place{s.file, line}}
}

// checkMembership checks what a machine and its Group's Definition must agree on.
func (b *builder) checkMembership() {
	docs := make(map[string]*declared[rawMachine], len(b.machines))
	for _, d := range b.machines {
		if d.named {
			docs[d.Metadata.Name.V] = d
		}
	}
	for _, m := range b.set.Machines {
		d := docs[m.Name]
		groups := b.set.groupsOf(m)
		if len(groups) > 1 {
			d.problem(0, "metadata.labels", fmt.Sprintf("machine %q is in the groups %q at %s and %q at %s", m.Name,
				groups[0].Name, b.names["Group"][groups[0].Name], groups[1].Name, b.names["Group"][groups[1].Name]),
				"make the selectors or its labels differ")
			continue
		}
		if len(groups) == 0 {
			continue
		}
		def := b.definition[groups[0].Definition]
		if def == nil {
			continue
		}
		if img := b.image[def.Image]; img != nil && img.Arch != m.Arch {
			d.problem(d.Spec.Arch.Line, "spec.arch", fmt.Sprintf("machine %q is %s, image %q of definition %q is %s", m.Name, m.Arch, img.Name, def.Name, img.Arch),
				"put it in a group whose image fits")
		}
		if t := b.templates[def.Name]; t != nil && d.clean {
			var e *fillError
			if _, err := t.render(m); errors.As(err, &e) {
				d.problem(0, e.field, fmt.Sprintf("definition %q cannot be filled in for machine %q: %s", def.Name, m.Name, e.text), e.next)
			}
		}
	}
}
