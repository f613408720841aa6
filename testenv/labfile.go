package testenv

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"recast/inventory"
)

// LabFile says what a lab is made of: a LAB.yaml, or the flags of lab up. It is
// also the fixture of tests.
type LabFile struct {
	OS       OSKind        // of the QEMU machines; "" where it does not say
	Machines []RackMachine // in order, rack by rack
	Faults   map[string][]Fault
	// Rollout of each group, as a Group has them; "" for the lab's own.
	MaxUnavailable, MaxFailures string
}

const (
	// labMost machines are in a lab: as many as its subnet and one process carry.
	labMost = 4000
	// labMostQEMU of them are real to their firmware: each takes 1 GiB of memory.
	labMostQEMU = 32
)

// simulated counts its machines of one kind.
func (f LabFile) count(simulated bool) (n int) {
	for _, m := range f.Machines {
		if m.Simulated == simulated {
			n++
		}
	}
	return n
}

// QEMU and Simulated are how many machines are of that kind.
func (f LabFile) QEMU() int      { return f.count(false) }
func (f LabFile) Simulated() int { return f.count(true) }

// NewLabFile is the file that flags come to, so many racks of so many machines, and
// its text.
func NewLabFile(racks, perRack int, simulated bool) (LabFile, []byte, error) {
	for _, flag := range []struct {
		name string
		n    int
	}{{"--racks", racks}, {"--per-rack", perRack}} {
		if flag.n < 1 || flag.n > labMost {
			return LabFile{}, nil, fmt.Errorf("%s %d: want a number from 1 to %d", flag.name, flag.n, labMost)
		}
	}
	switch n := racks * perRack; {
	case n > labMost:
		return LabFile{}, nil, fmt.Errorf("--racks %d --per-rack %d: %d machines in the lab; want at most %d", racks, perRack, n, labMost)
	case !simulated && n > labMostQEMU:
		return LabFile{}, nil, fmt.Errorf("--racks %d --per-rack %d: %d QEMU machines, which take 1 GiB of memory each; want at most %d, or --simulated", racks, perRack, n, labMostQEMU)
	}
	var b strings.Builder
	b.WriteString("racks:\n")
	for i := range racks {
		fmt.Fprintf(&b, "- {name: r%d, machines: %d, kind: %s}\n", i+1, perRack, simEither(simulated, "simulated", "qemu"))
	}
	f, err := ParseLabFile("--racks, --per-rack", []byte(b.String()))
	return f, []byte(b.String()), err
}

// ParseLabFile reads a LAB.yaml strictly: every problem at once, one line each.
func ParseLabFile(name string, data []byte) (LabFile, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		problem := inventory.Problem{File: name, Text: strings.TrimPrefix(err.Error(), "yaml: "), Next: "mend the YAML there"}
		if line, text, ok := strings.Cut(strings.TrimPrefix(problem.Text, "line "), ": "); ok {
			if n, err := strconv.Atoi(line); err == nil {
				problem.Line, problem.Text = n, text
			}
		}
		return LabFile{}, inventory.Problems{problem}
	}
	p := &labParser{file: name, racks: map[string]int{}, differ: map[string]*labDiffer{}, faults: map[string]labFaultList{}}
	if len(doc.Content) == 0 {
		p.problem(0, "", "the file is empty", "want racks: with a name and a number of machines each")
		return LabFile{}, p.problems
	}
	p.lab(doc.Content[0])
	f := p.build()
	if len(p.problems) > 0 {
		slices.SortStableFunc(p.problems, func(a, b inventory.Problem) int { return cmp.Compare(a.Line, b.Line) })
		p.problems = slices.Compact(p.problems) // a rack's are found once for each of its machines
		return LabFile{}, p.problems
	}
	return f, nil
}

// labSpec is what a rack or a machine says of machines; the zero value of a field
// says nothing.
type labSpec struct {
	kind, firmware, bmc string
	bootOrder           string
	tpm, drive          string
	nics                int
	disks               []RackDisk
	cable               *Cable
	line                map[string]int
}

type labRack struct {
	labSpec
	name     string
	machines int
	line     int
}

type labDiffer struct {
	labSpec
	line int
	used bool
}

type labFaultList struct {
	faults []Fault
	line   int
}

type labParser struct {
	file     string
	problems inventory.Problems

	out    LabFile
	order  []labRack
	racks  map[string]int // line of each name
	differ map[string]*labDiffer
	faults map[string]labFaultList
}

func (p *labParser) problem(line int, field, text, next string) {
	p.problems = append(p.problems, inventory.Problem{File: p.file, Line: line, Field: field, Text: text, Next: next})
}

// fields walks a mapping; read gets each field that is known, once.
func (p *labParser) fields(n *yaml.Node, at string, known []string, read func(key string, value *yaml.Node, at string)) {
	if n.Kind != yaml.MappingNode {
		p.problem(n.Line, at, "want fields with values here", "the fields are "+strings.Join(known, ", "))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field := key.Value
		if at != "" {
			field = at + "." + field
		}
		switch first, twice := seen[key.Value]; {
		case twice:
			p.problem(key.Line, field, "it is set twice", fmt.Sprintf("remove this or line %d", first))
			continue
		case known != nil && !slices.Contains(known, key.Value):
			p.problem(key.Line, field, "unknown field", inventory.DidYouMean(key.Value, known))
			continue
		}
		seen[key.Value] = key.Line
		read(key.Value, value, field)
	}
}

func (p *labParser) text(n *yaml.Node, at string) string {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		p.problem(n.Line, at, "want a text here", "")
		return ""
	}
	return n.Value
}

func (p *labParser) word(n *yaml.Node, at string, words ...string) string {
	text := p.text(n, at)
	if text != "" && !slices.Contains(words, text) {
		p.problem(n.Line, at, fmt.Sprintf("unknown value %q", text), "want "+strings.Join(words, ", "))
		return ""
	}
	return text
}

func (p *labParser) number(n *yaml.Node, at string, least, most int) int {
	v, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || v < least || v > most {
		p.problem(n.Line, at, fmt.Sprintf("bad value %q", n.Value), fmt.Sprintf("want a number from %d to %d", least, most))
		return least
	}
	return v
}

func (p *labParser) size(n *yaml.Node, at string) int64 {
	v, err := inventory.ParseSize(p.text(n, at))
	switch {
	case err != nil || v <= 0:
		p.problem(n.Line, at, fmt.Sprintf("bad value %q", n.Value), "want a size such as 2GiB")
	case v%osMiB != 0:
		p.problem(n.Line, at, fmt.Sprintf("%s is no whole number of MiB", n.Value), "want a size such as 2GiB")
	}
	return v
}

var labSpecFields = []string{"kind", "firmware", "bmc", "bootOrder", "tpm", "drive", "nics", "disks", "link"}

// spec reads one of the fields that racks and machines share.
func (p *labParser) spec(s *labSpec, key string, v *yaml.Node, at string) {
	if s.line == nil {
		s.line = map[string]int{}
	}
	s.line[key] = v.Line
	switch key {
	case "kind":
		s.kind = p.word(v, at, "qemu", "simulated")
	case "bootOrder":
		s.bootOrder = p.word(v, at, "disk", "network")
	case "tpm":
		s.tpm = p.word(v, at, "true", "false")
	case "drive":
		s.drive = p.word(v, at, "true", "false")
	case "firmware":
		s.firmware = p.word(v, at, string(SimBIOS), string(SimUEFI), string(SimHTTP), string(SimUBoot))
	case "bmc":
		s.bmc = p.word(v, at, string(BMCIPMI), string(BMCRedfish), string(BMCNone))
	case "link":
		s.cable = p.cable(v, at)
	case "nics":
		s.nics = p.number(v, at, 1, 8)
	case "disks":
		if v.Kind != yaml.SequenceNode || len(v.Content) == 0 {
			p.problem(v.Line, at, "want a list of disks", "such as [2GiB, {size: 1GiB, bus: nvme}]")
			return
		}
		for i, n := range v.Content {
			at := fmt.Sprintf("%s[%d]", at, i)
			var d RackDisk
			if n.Kind == yaml.ScalarNode {
				d.Size = p.size(n, at)
			} else {
				p.fields(n, at, []string{"size", "bus", "discard"}, func(key string, v *yaml.Node, at string) {
					switch key {
					case "size":
						d.Size = p.size(v, at)
					case "bus":
						d.Bus = DiskBus(p.word(v, at, string(BusAHCI), string(BusVirtio), string(BusNVMe), string(BusSCSI)))
					case "discard":
						d.Discard = p.word(v, at, "true", "false") == "true"
					}
				})
			}
			s.disks = append(s.disks, d)
		}
	}
}

// cable reads a link: each field is what the fault of its name does.
func (p *labParser) cable(n *yaml.Node, at string) *Cable {
	c := &Cable{}
	var known []string
	for _, k := range FaultKinds() {
		if name, ok := strings.CutPrefix(k.Name, "link-"); ok {
			known = append(known, name)
		}
	}
	p.fields(n, at, known, func(key string, v *yaml.Node, at string) {
		f := Fault{"link-" + key, p.text(v, at)}
		if err := f.check(f.kind()); err != nil {
			p.problem(v.Line, at, fmt.Sprintf("bad value %q", f.Value), faultWants(f.kind()))
			return
		}
		f.onCable(c)
	})
	return c
}

var labShare = regexp.MustCompile(`^[0-9]{1,4}%?$`)

func (p *labParser) lab(n *yaml.Node) {
	share := func(v *yaml.Node, at string) string {
		text := p.text(v, at)
		if text != "" && !labShare.MatchString(text) {
			p.problem(v.Line, at, fmt.Sprintf("bad value %q", text), "want a count or a share, such as 2 or 25%")
		}
		return text
	}
	p.fields(n, "", []string{"os", "racks", "machines", "faults", "rollout"}, func(key string, v *yaml.Node, at string) {
		switch key {
		case "os":
			p.out.OS = OSKind(p.word(v, at, string(OSDebian), string(OSTiny)))
		case "racks":
			if v.Kind != yaml.SequenceNode {
				p.problem(v.Line, at, "want a list of racks", "such as - {name: r1, machines: 48, kind: simulated}")
				return
			}
			for i, n := range v.Content {
				p.rack(n, fmt.Sprintf("racks[%d]", i))
			}
		case "machines":
			p.fields(v, at, nil, func(name string, v *yaml.Node, at string) {
				d := &labDiffer{line: v.Line}
				p.differ[name] = d
				p.fields(v, at, labSpecFields, func(key string, v *yaml.Node, at string) { p.spec(&d.labSpec, key, v, at) })
			})
		case "faults":
			p.fields(v, at, nil, p.faultsOf)
		case "rollout":
			p.fields(v, at, []string{"maxUnavailable", "maxFailures"}, func(key string, v *yaml.Node, at string) {
				if key == "maxUnavailable" {
					p.out.MaxUnavailable = share(v, at)
				} else {
					p.out.MaxFailures = share(v, at)
				}
			})
		}
	})
}

func (p *labParser) rack(n *yaml.Node, at string) {
	r := labRack{line: n.Line}
	p.fields(n, at, append([]string{"name", "machines"}, labSpecFields...), func(key string, v *yaml.Node, at string) {
		switch key {
		case "name":
			r.name = p.text(v, at)
			if err := inventory.CheckName(r.name); err != nil && r.name != "" {
				p.problem(v.Line, at, err.Error(), "")
			}
			if first, twice := p.racks[r.name]; twice {
				p.problem(v.Line, at, fmt.Sprintf("the rack %q is there twice", r.name), fmt.Sprintf("rename it, or the one of line %d", first))
			}
			p.racks[r.name] = v.Line
		case "machines":
			r.machines = p.number(v, at, 1, labMost)
		default:
			p.spec(&r.labSpec, key, v, at)
		}
	})
	if n.Kind != yaml.MappingNode {
		return
	}
	if r.name == "" {
		p.problem(n.Line, at+".name", "missing", "its machines are called by it: r1 has r1u01, r1u02 …")
	}
	if r.machines == 0 {
		p.problem(n.Line, at+".machines", "missing", "say how many machines it has")
	}
	p.order = append(p.order, r)
}

func (p *labParser) faultsOf(name string, v *yaml.Node, at string) {
	list := labFaultList{line: v.Line}
	nodes := []*yaml.Node{v}
	if v.Kind == yaml.SequenceNode {
		nodes = v.Content
	}
	for _, n := range nodes {
		text := p.text(n, at)
		if text == "" {
			continue
		}
		f, err := ParseFault(text)
		if err != nil {
			p.problem(n.Line, at, err.Error(), "")
			continue
		}
		if k := f.kind(); k.Once && k.Of != "machine" {
			p.problem(n.Line, at, fmt.Sprintf("%q happens now", f.Name), "call recast lab fault on the lab that runs")
			continue
		}
		list.faults = append(list.faults, f)
	}
	p.faults[name] = list
}

// build resolves what the racks and the machines say.
func (p *labParser) build() LabFile {
	if p.out.Faults = map[string][]Fault{}; len(p.order) == 0 && len(p.problems) == 0 {
		p.problem(0, "racks", "missing", "want at least one, such as - {name: r1, machines: 2}")
	}
	var names []string
	total := 0
	for _, r := range p.order {
		if total += r.machines; total > labMost {
			p.problem(r.line, "racks", fmt.Sprintf("%d machines in the lab", total), fmt.Sprintf("at most %d", labMost))
			return p.out
		}
		for unit := 1; unit <= r.machines; unit++ {
			name := fmt.Sprintf("%su%02d", r.name, unit)
			names = append(names, name)
			p.machine(r, name, unit)
		}
	}
	if n := p.out.QEMU(); n > labMostQEMU {
		p.problem(0, "racks", fmt.Sprintf("%d machines are QEMU, which take 1 GiB of memory each", n), fmt.Sprintf("at most %d; make the others kind: simulated", labMostQEMU))
	}
	for name, d := range p.differ {
		if !d.used && len(names) > 0 {
			p.problem(d.line, "machines."+name, fmt.Sprintf("no rack has a machine %q", name), inventory.DidYouMean(name, names))
		}
	}
	for name, l := range p.faults {
		i := slices.Index(names, name)
		if i < 0 {
			if len(names) > 0 {
				p.problem(l.line, "faults."+name, fmt.Sprintf("no rack has a machine %q", name), inventory.DidYouMean(name, names))
			}
			continue
		}
		for _, f := range l.faults {
			if err := f.fits(name, p.out.Machines[i].BMC); err != nil {
				p.problem(l.line, "faults."+name, err.Error(), "")
			}
		}
		p.out.Faults[name] = l.faults
	}
	return p.out
}

// machine resolves one: what it says itself, then its rack, then by its unit: the
// odd ones are BIOS behind IPMI, the even ones UEFI behind Redfish.
func (p *labParser) machine(r labRack, name string, unit int) {
	own := labSpec{}
	if d := p.differ[name]; d != nil {
		own, d.used = d.labSpec, true
	}
	at := func(key string) (int, string) {
		if line := own.line[key]; line > 0 {
			return line, "machines." + name + "." + key
		}
		return cmp.Or(r.labSpec.line[key], r.line), "racks." + r.name + "." + key
	}
	odd := unit%2 == 1
	m := RackMachine{Name: name, Rack: r.name, Unit: unit}
	m.Simulated = cmp.Or(own.kind, r.kind) == "simulated"
	firmware := SimFirmware(cmp.Or(own.firmware, r.firmware, simEither(odd, string(SimBIOS), string(SimUEFI))))
	m.BMC = RackBMC(cmp.Or(own.bmc, r.bmc, simEither(odd, string(BMCIPMI), string(BMCRedfish))))
	nics, disks := cmp.Or(own.nics, r.nics, 1), own.disks
	if disks == nil {
		disks = r.disks
	}
	m.Firmware = QEMUFirmware(firmware)
	if c := cmp.Or(own.cable, r.cable); c != nil {
		m.Cable = *c
	}
	m.NetworkFirst = cmp.Or(own.bootOrder, r.bootOrder) == "network"
	m.TPM = cmp.Or(own.tpm, r.tpm) == "true"
	m.Drive = cmp.Or(own.drive, r.drive) == "true"
	if disks != nil {
		m.Disks = slices.Clone(disks)
	}
	if m.Simulated {
		if nics > 1 {
			line, field := at("nics")
			p.problem(line, field, "a simulated machine has one card", "leave it out, or make it kind: qemu")
		}
		for _, d := range disks {
			if line, field := at("disks"); d.Bus != "" || d.Discard {
				p.problem(line, field, "a disk of a simulated machine has a size alone", "leave bus and discard out, or make it kind: qemu")
			}
		}
		p.out.Machines = append(p.out.Machines, m)
		return
	}
	switch firmware {
	case SimUBoot:
		line, field := at("firmware")
		p.problem(line, field, "u-boot is played by simulated machines alone", "make it kind: simulated")
	case SimHTTP:
		m.Firmware, m.NetBoot = FirmwareUEFI, NetBootHTTP
	}
	for range nics - 1 {
		if m.NICs == nil {
			m.NICs = []RackNIC{{}}
		}
		m.NICs = append(m.NICs, RackNIC{})
	}
	if m.Disks == nil {
		m.Disks = []RackDisk{{Bus: BusAHCI, Discard: !odd}} // one of both: a disk that ignores discards, too
	}
	p.out.Machines = append(p.out.Machines, m)
}
