package testenv

import (
	"fmt"
	"strings"

	"recast/inventory"
)

// RackDeclare says what the machines of a rack shall run.
type RackDeclare struct {
	Image inventory.Digest
	// Source of the image: a path or URL; may be empty.
	Source string
	// UserData of cloud-init; "" for one that sets the hostname.
	UserData string
	// Unknown is what an undeclared machine gets; "" ignore.
	Unknown inventory.UnknownMode
	// Canary, MaxUnavailable and MaxFailures of the rollout; "" for 0, 100% and 1.
	Canary, MaxUnavailable, MaxFailures string
	// Hint chooses the disk, as the lines of disk.select; "" for the rack's
	// smallest disk size as minSize.
	Hint string
	// Only declares these machines; nil all of them.
	Only []string
	// Spec is added to the Definition's spec, indented by two spaces.
	Spec string
}

// RackSecret is the name of the secret with the BMCs' user and password.
const RackSecret = "lab-bmc"

// Secret is the value of RackSecret: user:password.
func (r *Rack) Secret() string { return r.BMCUser + ":" + r.BMCPassword }

// YAML declares the rack: one Network, Image, Definition and Group, and every
// machine with its BMC.
func (r *Rack) YAML(d RackDeclare) string {
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	userData := or(d.UserData, "#cloud-config\nhostname: ${machine.name}\n")
	var b strings.Builder
	doc := func(kind, name, spec string) {
		if b.Len() > 0 {
			b.WriteString("---\n")
		}
		fmt.Fprintf(&b, "apiVersion: recast/v1\nkind: %s\nmetadata: {name: %s}\nspec:\n%s", kind, name, spec)
	}
	doc("Network", "lab", fmt.Sprintf("  subnet: %s\n  dhcp: authoritative\n  unknown: %s\n  pool: 10.77.0.100-10.77.0.199\n",
		rackServer.Masked(), or(string(d.Unknown), string(inventory.UnknownIgnore))))
	image := fmt.Sprintf("  type: disk\n  arch: amd64\n  digest: %q\n", d.Image)
	if d.Source != "" {
		image += fmt.Sprintf("  source: %q\n", d.Source)
	}
	doc("Image", "lab", image)
	doc("Definition", "lab", "  image: lab\n  disk:\n    select:\n"+rackIndent(or(d.Hint, "minSize: 64MiB\n"), "      ")+
		"  config:\n    format: cloud-init\n    userData: |\n"+rackIndent(userData, "      ")+d.Spec)
	doc("Group", "lab", fmt.Sprintf("  select: {rack: lab}\n  definition: lab\n  rollout: {canary: %s, maxUnavailable: %s, maxFailures: %s}\n",
		or(d.Canary, "0"), or(d.MaxUnavailable, "100%"), or(d.MaxFailures, "1")))
	for i, n := range r.Nodes {
		if !rackListed(d.Only, n.Name) {
			continue
		}
		spec := fmt.Sprintf("  location: {rack: lab, unit: %d}\n  firmware: %s\n  serial: %q\n  uuid: %q\n  nics: [{mac: %q, network: lab, ip: %s}]\n",
			i+1, n.Firmware, n.Serial, n.UUID, n.MAC, n.IP)
		switch {
		case n.IPMI != nil:
			spec += fmt.Sprintf("  bmc: {url: %q, credentials: %s}\n", n.IPMI.URL(), RackSecret)
		case n.Redfish != nil:
			spec += fmt.Sprintf("  bmc: {url: %q, credentials: %s, pin: %q}\n", n.Redfish.URL(), RackSecret, n.Redfish.Pin())
		}
		doc("Machine", n.Name, spec)
	}
	return b.String()
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
