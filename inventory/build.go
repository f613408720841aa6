package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (b *builder) buildNetwork(d *declared[rawNetwork]) {
	raw := d.Spec
	n := &Network{
		Name: d.Metadata.Name.V, DHCP: DHCPMode(raw.DHCP.V),
		Unknown: UnknownMode(cmp.Or(raw.Unknown.V, string(UnknownIgnore))),
		Force:   raw.Force.V, Listen: raw.Listen.V, LeaseTime: DefaultLeaseTime,
	}
	good := d.named && n.DHCP != ""
	if raw.Subnet.given() {
		var err error
		if n.Subnet, err = parsePrefix(raw.Subnet.V); err != nil {
			d.fail(raw.Subnet.Line, "spec.subnet", err)
		}
	}
	good = good && n.Subnet.IsValid()
	inside := func(t text, field string, a netip.Addr) bool {
		if why := notHost(n.Subnet, a); why != "" {
			d.problem(t.Line, field, why, hostRange(n.Subnet))
			return false
		}
		return true
	}
	if raw.Gateway.given() {
		if a, err := parseAddr(raw.Gateway.V); err != nil {
			d.fail(raw.Gateway.Line, "spec.gateway", err)
		} else if inside(raw.Gateway, "spec.gateway", a) {
			n.Gateway = a
		}
	}
	for i, t := range raw.DNS {
		if !t.given() {
			continue
		}
		a, err := parseAddr(t.V)
		if err != nil {
			d.fail(t.Line, fmt.Sprintf("spec.dns[%d]", i), err)
			continue
		}
		n.DNS = append(n.DNS, a)
	}
	if raw.Pool.given() {
		const field = "spec.pool"
		r, err := parseRange(raw.Pool.V)
		switch {
		case err != nil:
			d.fail(raw.Pool.Line, field, err)
		case !inside(raw.Pool, field, r.First) || !inside(raw.Pool, field, r.Last):
		case r.Contains(n.Gateway):
			d.problem(raw.Pool.Line, field, fmt.Sprintf("the gateway %s lies in the pool %s", n.Gateway, raw.Pool.V), "shrink the pool")
		case n.DHCP == DHCPProxy || n.DHCP == DHCPOff:
			d.problem(raw.Pool.Line, field, fmt.Sprintf("with dhcp: %s recast gives no addresses", n.DHCP), "remove it or set dhcp: authoritative")
		default:
			n.Pool = &r
		}
	} else if n.DHCP == DHCPAuthoritative && n.Unknown != UnknownIgnore {
		d.problem(raw.Unknown.Line, "spec.unknown", fmt.Sprintf("unknown: %s needs addresses for undeclared machines", n.Unknown), "add a pool")
	}
	if raw.LeaseTime.given() {
		// RFC 2131 clients renew at half the time: below two minutes that is a storm.
		v, err := parseDuration(raw.LeaseTime.V, 2*time.Minute, 30*24*time.Hour)
		if err != nil {
			d.fail(raw.LeaseTime.Line, "spec.leaseTime", err)
		}
		n.LeaseTime = v
	}
	if raw.Listen.given() && !interfaceGrammar.MatchString(raw.Listen.V) {
		d.problem(raw.Listen.Line, "spec.listen", fmt.Sprintf("%q is not the name of an interface", raw.Listen.V), "want a name such as eth0")
	}
	if good {
		b.pooled[n.Name] = raw.Pool.given()
		b.network[n.Name] = n
		b.set.Networks = append(b.set.Networks, n)
	}
}

// notHost says why a cannot be a host's address in the subnet; "" if it can, or
// if the subnet is not known.
func notHost(subnet netip.Prefix, a netip.Addr) string {
	switch {
	case !subnet.IsValid():
		return ""
	case !subnet.Contains(a):
		return fmt.Sprintf("the address %s is outside the subnet %s", a, subnet)
	case a == subnet.Addr():
		return fmt.Sprintf("%s is the address of the subnet %s itself", a, subnet)
	case a == lastAddr(subnet):
		return fmt.Sprintf("%s is the broadcast address of %s", a, subnet)
	}
	return ""
}

// hostRange is the next step after an address that is none of the subnet's.
func hostRange(subnet netip.Prefix) string {
	return fmt.Sprintf("want one from %s to %s", subnet.Addr().Next(), lastAddr(subnet).Prev())
}

// checkSubnets finds overlapping subnets: sorted by address, a subnet overlaps
// an earlier one if it begins before the furthest end so far.
func (b *builder) checkSubnets() {
	docs := make(map[string]*declared[rawNetwork], len(b.networks))
	for _, d := range b.networks {
		if d.named {
			docs[d.Metadata.Name.V] = d
		}
	}
	nets := slices.Clone(b.set.Networks)
	slices.SortFunc(nets, func(x, y *Network) int {
		return cmp.Or(x.Subnet.Addr().Compare(y.Subnet.Addr()), cmp.Compare(x.Subnet.Bits(), y.Subnet.Bits()))
	})
	var furthest *Network
	for _, n := range nets {
		if furthest != nil && furthest.Subnet.Contains(n.Subnet.Addr()) {
			d := docs[n.Name]
			d.problem(d.Spec.Subnet.Line, "spec.subnet",
				fmt.Sprintf("%s overlaps %s of network %q at %s", n.Subnet, furthest.Subnet, furthest.Name, b.names["Network"][furthest.Name]),
				"give each Network its own subnet")
		}
		if furthest == nil || lastAddr(furthest.Subnet).Less(lastAddr(n.Subnet)) {
			furthest = n
		}
	}
}

func (b *builder) buildImage(d *declared[rawImage]) {
	raw := d.Spec
	i := &Image{
		Name: d.Metadata.Name.V, Type: ImageType(raw.Type.V),
		Arch: Arch(cmp.Or(raw.Arch.V, string(AMD64))), Source: raw.Source.V,
	}
	if i.Type == ImageKernel {
		d.problem(raw.Type.Line, "spec.type", "kernel images are not accepted yet", "want disk")
	}
	if raw.Digest.given() {
		var err error
		if i.Digest, err = ParseDigest(raw.Digest.V); err != nil {
			d.fail(raw.Digest.Line, "spec.digest", err)
		}
	}
	if raw.Source.given() {
		if why := badSource(raw.Source.V); why != "" {
			d.problem(raw.Source.Line, "spec.source", why, "want a file path or an https URL, or leave it out and use recast image add")
		}
	}
	if d.named && i.Digest != "" {
		b.image[i.Name] = i
		b.set.Images = append(b.set.Images, i)
	}
}

func badSource(s string) string {
	switch scheme, rest, ok := strings.Cut(s, "://"); {
	case s == "":
		return "the source is empty"
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "the source holds a control character"
	case !ok:
		return ""
	case scheme == "https" || scheme == "http":
		if host, _, _ := strings.Cut(rest, "/"); host == "" {
			return fmt.Sprintf("the source %q has no host", s)
		} else if strings.Contains(host, "@") {
			return "the source holds a user or password, which would be shown in plans and logs"
		}
		return ""
	case scheme == "file":
		return ""
	default:
		return fmt.Sprintf("sources by %s:// are not accepted yet", scheme)
	}
}

func (b *builder) buildDefinition(d *declared[rawDefinition]) {
	raw := d.Spec
	o := &Definition{
		Name: d.Metadata.Name.V, Image: raw.Image.V,
		Every:          BootEvery(cmp.Or(raw.Boot.Every.V, string(BootDisk))),
		Wipe:           WipeMode(cmp.Or(raw.Disk.Wipe.V, string(WipeTable))),
		Config:         Config{Format: ConfigFormat(cmp.Or(raw.Config.Format.V, string(ConfigNone))), UserData: raw.Config.UserData.V},
		Evidence:       E2,
		HealthDeadline: DefaultHealth,
		Attempts:       DefaultAttempts,
	}
	d.refers(raw.Image, "spec.image", "Image")
	if o.Every != BootDisk {
		d.problem(raw.Boot.Every.Line, "spec.boot.every", fmt.Sprintf("every: %s is not accepted yet", o.Every), "want disk")
	}
	if len(raw.KernelArgs) > 0 {
		d.problem(raw.KernelArgs[0].Line, "spec.kernelArgs", "the boot loader of a disk image owns the kernel's arguments", "remove it and set them in the image")
	}
	o.Select = d.buildSelect(raw.Disk.Select)
	if raw.Evidence.Minimum.given() && o.Evidence.UnmarshalText([]byte(raw.Evidence.Minimum.V)) == nil && o.Evidence > E3 {
		d.problem(raw.Evidence.Minimum.Line, "spec.evidence.minimum",
			fmt.Sprintf("a disk image gives at most read-back, not %s", o.Evidence), "want reported or read-back")
	}
	if t := raw.Health.Deadline; t.given() {
		d.duration(t, "spec.health.deadline", &o.HealthDeadline)
	}
	o.Deadlines = make(map[string]Duration, len(DefaultDeadlines)+1)
	for step, v := range DefaultDeadlines {
		o.Deadlines[step] = v
	}
	o.Deadlines["starting"] = o.HealthDeadline
	for _, e := range raw.Deadlines {
		field := "spec.deadlines." + e.Key
		if e.Key == "starting" {
			d.problem(e.KeyLine, field, "the deadline of starting is health.deadline", "move it there")
			continue
		}
		v, ok := DefaultDeadlines[e.Key]
		if !ok {
			d.problem(e.KeyLine, field, fmt.Sprintf("there is no step %q", e.Key), didYouMean(e.Key, stepNames()))
			continue
		}
		d.duration(text(e.Value), field, &v)
		o.Deadlines[e.Key] = v
	}
	if n := raw.Attempts; n.given() {
		if o.Attempts = n.V; n.V < 1 || n.V > 20 {
			d.problem(n.Line, "spec.attempts", fmt.Sprintf("%d attempts", n.V), "want 1 to 20")
		}
	}
	t := d.buildConfig(raw.Config, o)
	if d.named {
		b.definition[o.Name] = o
		b.templates[o.Name] = t
		b.set.Definitions = append(b.set.Definitions, o)
	}
}

func (s scope) duration(t text, field string, into *Duration) {
	v, err := parseDuration(t.V, time.Second, 7*24*time.Hour)
	if err != nil {
		s.fail(t.Line, field, err)
		return
	}
	*into = v
}

func stepNames() []string {
	names := make([]string, 0, len(DefaultDeadlines))
	for step := range DefaultDeadlines {
		names = append(names, step)
	}
	slices.Sort(names)
	return names
}

// buildConfig compiles the user data; nil where it has problems.
func (s scope) buildConfig(raw rawConfig, o *Definition) *template {
	data := raw.UserData
	if data.given() && o.Config.Format == ConfigNone {
		if raw.Format.V != "" || !raw.Format.given() {
			s.problem(cmp.Or(raw.Format.Line, data.Line), "spec.config.format", "userData without a format is read by nobody", "want cloud-init")
		}
		return nil
	}
	t, problems := compileTemplate(data.V)
	for _, p := range problems {
		s.problem(lineIn(data, p.offset), "spec.config.userData", p.text, p.next)
	}
	if t == nil {
		return nil
	}
	for _, v := range t.variables() {
		if v.kind == varSecret {
			s.b.refs = append(s.b.refs, SecretRef{Name: v.arg, File: s.file, Line: lineIn(data, v.offset), Field: "spec.config.userData"})
		}
	}
	return t
}

// lineIn is the line of an offset in a scalar: exact in a literal block, else
// the line the scalar begins on.
func lineIn(t text, offset int) int {
	if !t.Block {
		return t.Line
	}
	return t.Line + 1 + strings.Count(t.V[:min(offset, len(t.V))], "\n")
}

func (b *builder) buildGroup(d *declared[rawGroup]) {
	raw := d.Spec
	g := &Group{
		Name: d.Metadata.Name.V, Definition: raw.Definition.V, Select: make(map[string]string, len(raw.Select)),
		Rollout: Rollout{
			MaxUnavailable: IntOrPercent{Value: 25, Percent: true},
			MaxFailures:    IntOrPercent{Value: 1},
		},
	}
	if d.clean && len(raw.Select) == 0 {
		d.problem(0, "spec.select", "it selects nothing", "name at least one label or location field, such as rack: r1")
	}
	for _, e := range raw.Select {
		field := "spec.select." + e.Key
		if !labelGrammar.MatchString(e.Key) {
			d.problem(e.KeyLine, field, fmt.Sprintf("bad label name %q", e.Key), labelRule)
			continue
		}
		if !labelGrammar.MatchString(e.Value.V) {
			d.problem(e.Value.Line, field, fmt.Sprintf("no machine can have the value %q", e.Value.V), labelRule)
			continue
		}
		g.Select[e.Key] = e.Value.V
	}
	d.refers(raw.Definition, "spec.definition", "Definition")
	if t := raw.Generation; t.given() {
		var err error
		if g.Generation, err = ParseDigest(t.V); err != nil {
			d.fail(t.Line, "spec.generation", err)
		}
	}
	if n := raw.Rollout.Canary; n.given() {
		if g.Rollout.Canary = n.V; n.V < 0 {
			d.problem(n.Line, "spec.rollout.canary", fmt.Sprintf("%d is negative", n.V), "want 0 or more")
		}
	}
	share := func(t scalar, field string, into *IntOrPercent) {
		if !t.given() {
			return
		}
		v, err := parseIntOrPercent(t.V)
		if err != nil {
			d.fail(t.Line, field, err)
			return
		}
		*into = v
	}
	share(raw.Rollout.MaxUnavailable, "spec.rollout.maxUnavailable", &g.Rollout.MaxUnavailable)
	share(raw.Rollout.MaxFailures, "spec.rollout.maxFailures", &g.Rollout.MaxFailures)
	// A selector that lost a part would select more machines than were meant.
	if d.named && d.clean && len(g.Select) > 0 && len(g.Select) == len(raw.Select) {
		b.set.Groups = append(b.set.Groups, g)
	}
}

const labelRule = "want letters, digits, '.', '_' and '-', at most 63, beginning and ending with a letter or digit"

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

func (b *builder) buildMachine(d *declared[rawMachine], hw hardware) {
	raw := d.Spec
	m := &Machine{
		Name: d.Metadata.Name.V, Arch: Arch(cmp.Or(raw.Arch.V, string(AMD64))),
		Serial: raw.Serial.V, Protected: raw.Protected.V,
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
	nic := NIC{Network: raw.Network.V}
	ok := false
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
	if !raw.IP.given() {
		if n != nil && n.DHCP == DHCPAuthoritative && !s.b.pooled[n.Name] {
			s.problem(raw.Network.Line, at+"ip", fmt.Sprintf("network %q has no pool, so this interface would never get an address", n.Name), "give it an ip, or the Network a pool")
		}
		return nic, ok
	}
	a, err := parseAddr(raw.IP.V)
	if err != nil {
		s.fail(raw.IP.Line, at+"ip", err)
		return nic, ok
	}
	if !raw.Network.given() {
		s.problem(raw.IP.Line, at+"network", fmt.Sprintf("the address %s is on no network", a), "name the Network it lies in")
		return nic, ok
	}
	if n != nil {
		switch why := notHost(n.Subnet, a); {
		case why != "":
			s.problem(raw.IP.Line, at+"ip", why+" of network "+strconv.Quote(n.Name), hostRange(n.Subnet))
			return nic, ok
		case n.Pool != nil && n.Pool.Contains(a):
			s.problem(raw.IP.Line, at+"ip", fmt.Sprintf("the address %s lies in the pool %s-%s of network %q, which is for undeclared machines", a, n.Pool.First, n.Pool.Last, n.Name), "choose one outside it")
		case a == n.Gateway:
			s.problem(raw.IP.Line, at+"ip", fmt.Sprintf("%s is the gateway of network %q", a, n.Name), "choose another address")
		}
	}
	nic.IP = a
	return nic, hw.claim(s, m.Name, "address", a.String(), raw.IP.Line, at+"ip") && ok
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
	if n := raw.CipherSuite; n.given() {
		if scheme != "ipmi" {
			s.problem(n.Line, "spec.bmc.cipherSuite", "Redfish has no cipher suite", "remove it")
		} else if n.V != 17 && n.V != 3 {
			s.problem(n.Line, "spec.bmc.cipherSuite", fmt.Sprintf("cipher suite %d is not accepted", n.V), "want 17, or 3 where the BMC knows nothing better")
		}
	}
	return ref
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
