package testenv

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"recast/inventory"
)

// RackDeclare says what the machines of a rack shall run.
type RackDeclare struct {
	Image inventory.Digest
	// Simulated are the images of the groups of simulated machines; see SimImages.
	Simulated map[string]inventory.Digest
	// Source of the image: a path or URL; may be empty.
	Source string
	// Immutable are the partitions of the image that are, as a YAML list; "" none.
	Immutable string
	// State likewise are those that every: restore keeps; "" is not said.
	State string
	// Verity are its data and tree partitions, as a YAML map; "" none.
	Verity string
	// Kernel is what a gate starts of the image by kexec, as a YAML map; "" nothing.
	Kernel string
	// UserData of cloud-init; "" for one that sets the hostname.
	UserData string
	// Unknown is what an undeclared machine gets; "" ignore.
	Unknown inventory.UnknownMode
	// Canary, MaxUnavailable and MaxFailures of the rollout; "" for 0, 100% and 1.
	Canary, MaxUnavailable, MaxFailures string
	// Hint chooses the disk, as the lines of disk.select; "" for the rack's
	// smallest disk size as minSize.
	Hint string
	// DHCP of the Network; "" authoritative.
	DHCP inventory.DHCPMode
	// Via is how the machines boot; "" from the network.
	Via inventory.BootVia
	// Handover of the machines; "" as their Definition says.
	Handover inventory.Handover
	// Only declares these machines; nil all of them.
	Only []string
	// Spec is added to the Definition's spec, indented by two spaces; SimulatedSpec
	// to those of simulated machines.
	Spec, SimulatedSpec string
}

// RackSecret is the name of the secret with the BMCs' user and password.
const RackSecret = "lab-bmc"

// Secret is the value of RackSecret: user:password.
func (r *Rack) Secret() string { return r.BMCUser + ":" + r.BMCPassword }

// YAML declares the rack: one Network, for each kind of machine an Image, a
// Definition and a Group, and every machine with its BMC.
func (r *Rack) YAML(d RackDeclare) string {
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	userData := or(d.UserData, "#cloud-config\nhostname: ${machine.name}\n")
	var b strings.Builder
	doc := func(kind, metadata, spec string) {
		if b.Len() > 0 {
			b.WriteString("---\n")
		}
		fmt.Fprintf(&b, "apiVersion: recast/v1\nkind: %s\nmetadata: {%s}\nspec:\n%s", kind, metadata, spec)
	}
	server, _ := r.addresses()
	network := fmt.Sprintf("  subnet: %s\n  dhcp: %s\n  unknown: %s\n", server.Masked(),
		or(string(d.DHCP), string(inventory.DHCPAuthoritative)), or(string(d.Unknown), string(inventory.UnknownIgnore)))
	if d.DHCP != inventory.DHCPOff {
		network += "  pool: 10.77.0.100-10.77.0.199\n"
	}
	doc("Network", "name: lab", network)
	for _, group := range r.groups() {
		digest, arch, hint, more := d.Image, inventory.AMD64, or(d.Hint, "minSize: 64MiB\n"), d.Spec
		if group != rackGroup {
			digest, hint, more = d.Simulated[group], or(d.Hint, "minSize: 4MiB\n"), d.SimulatedSpec
		}
		if group == rackGroupARM64 {
			arch = inventory.ARM64
		}
		image := fmt.Sprintf("  type: disk\n  arch: %s\n  digest: %q\n", arch, digest)
		if d.Immutable != "" && group == rackGroup {
			image += fmt.Sprintf("  immutable: %s\n", d.Immutable)
		}
		if d.Verity != "" && group == rackGroup {
			image += fmt.Sprintf("  verity: %s\n", d.Verity)
		}
		if d.State != "" && group == rackGroup {
			image += fmt.Sprintf("  state: %s\n", d.State)
		}
		if d.Kernel != "" && group == rackGroup {
			image += fmt.Sprintf("  boot: %s\n", d.Kernel)
		}
		if d.Source != "" && group == rackGroup {
			image += fmt.Sprintf("  source: %q\n", d.Source)
		}
		doc("Image", "name: "+group, image)
		doc("Definition", "name: "+group, "  image: "+group+"\n  disk:\n    select:\n"+rackIndent(hint, "      ")+
			"  config:\n    format: cloud-init\n    userData: |\n"+rackIndent(userData, "      ")+more)
		doc("Group", "name: "+group, fmt.Sprintf("  select: {lab: %s}\n  definition: %s\n  rollout: {canary: %s, maxUnavailable: %s, maxFailures: %s}\n",
			group, group, or(d.Canary, "0"), or(d.MaxUnavailable, "100%"), or(d.MaxFailures, "1")))
	}
	for i, m := range r.members {
		if !rackListed(d.Only, m.spec.Name) {
			continue
		}
		firmware := FirmwareBIOS
		if m.machine.UEFI() {
			firmware = FirmwareUEFI
		}
		spec := fmt.Sprintf("  location: {rack: %s, unit: %d}\n  firmware: %s\n  serial: %q\n  uuid: %q\n  nics: [{mac: %q, network: lab, ip: %s}]\n",
			or(m.spec.Rack, "lab"), cmp.Or(m.spec.Unit, i+1), firmware, m.serial, m.uuid, m.mac, m.ip)
		if m.group() == rackGroupARM64 {
			spec += "  arch: arm64\n"
		}
		switch {
		case m.IPMI != nil:
			spec += fmt.Sprintf("  bmc: {url: %q, credentials: %s}\n", m.IPMI.URL(), RackSecret)
		case m.Redfish != nil:
			hostKey := ""
			if key := m.Redfish.HostKey(); key != "" {
				hostKey = fmt.Sprintf(", hostKey: %q", key)
			}
			spec += fmt.Sprintf("  bmc: {url: %q, credentials: %s, pin: %q%s}\n", m.Redfish.URL(), RackSecret, m.Redfish.Pin(), hostKey)
		}
		switch {
		case d.Via != "":
			spec += fmt.Sprintf("  boot: {via: %s}\n", d.Via)
		case d.Handover != "":
			spec += fmt.Sprintf("  boot: {handover: %s}\n", d.Handover)
		}
		if m.spec.SecureBoot {
			spec += "  secureBoot: true\n"
		}
		doc("Machine", fmt.Sprintf("name: %s, labels: {lab: %s}", m.spec.Name, m.group()), spec)
	}
	return b.String()
}

// The groups of a rack: each has an Image, a Definition and a Group of its name.
const (
	rackGroup          = "lab"             // the QEMU machines
	rackGroupSimulated = "simulated"       // the simulated ones
	rackGroupARM64     = "simulated-arm64" // those of another architecture
)

func (m rackMember) group() string {
	switch {
	case m.simulated == nil:
		return rackGroup
	case m.simulated.Options.firmware().Arch() == inventory.ARM64:
		return rackGroupARM64
	}
	return rackGroupSimulated
}

// groups of the machines that there are.
func (r *Rack) groups() (groups []string) {
	for _, g := range []string{rackGroup, rackGroupSimulated, rackGroupARM64} {
		if slices.ContainsFunc(r.members, func(m rackMember) bool { return m.group() == g }) {
			groups = append(groups, g)
		}
	}
	return groups
}

func rackListed(only []string, name string) bool {
	for _, o := range only {
		if o == name {
			return true
		}
	}
	return only == nil
}

func rackIndent(text, by string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" {
			b.WriteString(by)
		}
		b.WriteString(line)
	}
	if !strings.HasSuffix(text, "\n") {
		b.WriteString("\n")
	}
	return b.String()
}
