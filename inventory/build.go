package inventory

import (
	"cmp"
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
		if n.Subnet.Addr().Is6() {
			d.problem(raw.Gateway.Line, "spec.gateway", "DHCPv6 names no router: IPv6 routers announce themselves", "remove it")
		} else if a, err := parseAddr4(raw.Gateway.V); err != nil {
			d.fail(raw.Gateway.Line, "spec.gateway", err)
		} else if inside(raw.Gateway, "spec.gateway", a) {
			n.Gateway = a
		}
	}
	for i, t := range raw.DNS {
		if !t.given() {
			continue
		}
		a, err := parseAddr(t.V, n.Subnet)
		if err != nil {
			d.fail(t.Line, fmt.Sprintf("spec.dns[%d]", i), err)
			continue
		}
		n.DNS = append(n.DNS, a)
	}
	if n.Subnet.Addr().Is6() && n.DHCP == DHCPProxy {
		d.problem(raw.DHCP.Line, "spec.dhcp", "IPv6 has no ProxyDHCP", "want authoritative or off")
	}
	b.buildRoutes(d, n)
	if v := raw.VLAN; v.given() {
		if n.VLAN = v.V; v.V < 1 || v.V > 4094 {
			d.problem(v.Line, "spec.vlan", fmt.Sprintf("%d is no VLAN", v.V), "want 1 to 4094, or leave it out where machines send frames without a tag")
		}
	}
	if raw.Pool.given() {
		const field = "spec.pool"
		r, err := parseRange(raw.Pool.V, n.Subnet)
		switch {
		case err != nil:
			d.fail(raw.Pool.Line, field, err)
		case !inside(raw.Pool, field, r.First) || !inside(raw.Pool, field, r.Last):
		case slices.ContainsFunc(n.Routes, func(o Route) bool { return r.Contains(o.Via) }):
			d.problem(raw.Pool.Line, field, fmt.Sprintf("a router of its routes lies in the pool %s", raw.Pool.V), "shrink the pool")
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

// maxRoutes fit the smallest reply that a client takes, whatever else is in it.
const maxRoutes = 16

func (b *builder) buildRoutes(d *declared[rawNetwork], n *Network) {
	raw := d.Spec.Routes
	if len(raw) == 0 {
		return
	}
	if n.Subnet.Addr().Is6() {
		d.problem(raw[0].Line, "spec.routes", "DHCPv6 gives no routes: IPv6 routers announce them (RFC 4191)", "remove them")
		return
	}
	if len(raw) > maxRoutes {
		d.problem(raw[maxRoutes].Line, "spec.routes", fmt.Sprintf("%d routes are more than fit a DHCP reply", len(raw)), fmt.Sprintf("want at most %d: put subnets together, or leave the rest to the gateway", maxRoutes))
		return
	}
	for i, r := range raw {
		field := fmt.Sprintf("spec.routes[%d].", i)
		if !r.To.given() || !r.Via.given() {
			continue
		}
		to, err := netip.ParsePrefix(r.To.V)
		switch {
		case err != nil || !to.Addr().Is4():
			d.problem(r.To.Line, field+"to", fmt.Sprintf("%q is not a subnet", r.To.V), "want one such as 10.30.0.0/16")
			continue
		case to != to.Masked():
			d.problem(r.To.Line, field+"to", fmt.Sprintf("%s has bits set behind the mask", to), "write "+to.Masked().String())
			continue
		case to.Bits() == 0:
			d.problem(r.To.Line, field+"to", "that is the default route", "name its router as gateway")
			continue
		case n.Subnet.IsValid() && n.Subnet.Contains(to.Addr()) && to.Bits() >= n.Subnet.Bits():
			d.problem(r.To.Line, field+"to", fmt.Sprintf("%s lies in the subnet %s itself", to, n.Subnet), "remove it: no router is needed")
			continue
		case slices.ContainsFunc(n.Routes, func(o Route) bool { return o.To == to }):
			d.problem(r.To.Line, field+"to", fmt.Sprintf("a second route to %s", to), "remove one")
			continue
		}
		via, err := parseAddr4(r.Via.V)
		if err != nil {
			d.fail(r.Via.Line, field+"via", err)
			continue
		}
		if why := notHost(n.Subnet, via); why != "" {
			d.problem(r.Via.Line, field+"via", why, hostRange(n.Subnet))
			continue
		}
		n.Routes = append(n.Routes, Route{to, via})
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
	case a.Is4() && a == lastAddr(subnet):
		return fmt.Sprintf("%s is the broadcast address of %s", a, subnet)
	}
	return ""
}

// hostRange is the next step after an address that is none of the subnet's.
func hostRange(subnet netip.Prefix) string {
	last := lastAddr(subnet)
	if last.Is4() {
		last = last.Prev()
	}
	return fmt.Sprintf("want one from %s to %s", subnet.Addr().Next(), last)
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
	i.Immutable = d.buildPartitions("immutable", raw.Immutable)
	i.State = d.buildPartitions("state", raw.State)
	for n, name := range i.State {
		if slices.Contains(i.Immutable, name) {
			d.problem(raw.State[n].Line, "spec.state["+strconv.Itoa(n)+"]", fmt.Sprintf("%q never changes, as immutable says", name), "remove one")
		}
	}
	d.buildVerity(raw.Verity, i)
	d.buildImageBoot(raw.Boot, i)
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
	case scheme == "https":
		if host, _, _ := strings.Cut(rest, "/"); host == "" {
			return fmt.Sprintf("the source %q has no host", s)
		} else if strings.Contains(host, "@") {
			return "the source holds a user or password, which would be shown in plans and logs"
		}
		return ""
	case scheme == "file" && strings.HasPrefix(rest, "/"):
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
	d.buildGate(raw, o)
	if len(raw.KernelArgs) > 0 {
		d.problem(raw.KernelArgs[0].Line, "spec.kernelArgs", "the boot loader of a disk image owns the kernel's arguments", "remove it and set them in the image, and in its boot.args for a gate that starts it by kexec")
	}
	o.Select = d.buildSelect(raw.Disk.Select)
	d.buildEvidence(raw.Evidence.Minimum, o)
	if o.Identity = Identity(raw.Identity.Minimum.V); o.Identity == L0 {
		o.Identity = ""
	}
	if t := raw.Evidence.MaxAge; t.given() {
		var err error
		if o.EvidenceAge, err = parseDuration(t.V, time.Minute, 365*24*time.Hour); err != nil {
			d.fail(t.Line, "spec.evidence.maxAge", err)
		}
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
	s.b.set.configAt[o.Name] = spot{place{s.file, cmp.Or(lineIn(data, 0), raw.Format.Line, s.line)}, "spec.config.userData"}
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
	if raw.Power.V == string(PowerEnforce) {
		g.Power = PowerEnforce
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
