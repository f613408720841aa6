package inventory

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	notNameRune = regexp.MustCompile(`[^a-z0-9]+`)
	noText      = regexp.MustCompile(`(?i)^(to be filled.*|not (specified|applicable|available|set)|default string|system serial number|none|n/?a|null|unknown|empty|invalid)$`)
	noSerial    = regexp.MustCompile(`(?i)^([0x.-]*|0*123456789.*)$`)
	noUUID      = regexp.MustCompile(`^(0{32}|f{32}|03000200040005000006000700080009)$`) // the last a vendor's, never set
)

// UsableSerial is false for the values that many boards share, which therefore name none.
func UsableSerial(s string) bool { return !Placeholder(s) && !noSerial.MatchString(s) }

// UsableUUID is false for the values that many boards share, which therefore prove
// nothing, and for what is no UUID.
func UsableUUID(s string) bool {
	digits := strings.ToLower(strings.ReplaceAll(s, "-", ""))
	return len(digits) == 32 && !noUUID.MatchString(digits)
}

// Placeholder tells what vendors leave where nobody filled something in, in SMBIOS and
// in what BMCs say.
func Placeholder(s string) bool { return noText.MatchString(s) }

// YAMLFor is the document that declares a discovered machine, to be named and
// completed by a person. The interface it booted from comes first and is put on
// the network, where one is given. Everything in facts came from the machine
// itself, so nothing of it is written unquoted.
func YAMLFor(facts Facts, network ...string) string {
	var b strings.Builder
	macs := usableMACs(facts)
	fmt.Fprintf(&b, "apiVersion: %s\nkind: Machine\nmetadata:\n  name: %q  # choose one\n  labels: {}\nspec:\n", APIVersion, nameFor(facts, macs))
	switch facts.CPU.Architecture {
	case "aarch64", "arm64":
		fmt.Fprintf(&b, "  arch: %s\n", ARM64)
	default:
		fmt.Fprintf(&b, "  arch: %s\n", AMD64)
	}
	if mode := Firmware(facts.Boot.Mode); mode == BIOS || mode == UEFI {
		fmt.Fprintf(&b, "  firmware: %s\n", mode)
	}
	if serial := strings.TrimSpace(facts.SystemVendor.SerialNumber); badSerial(serial) == "" && UsableSerial(serial) {
		fmt.Fprintf(&b, "  serial: %q\n", serial)
	}
	if uuid := strings.ToLower(facts.SystemVendor.UUID); uuidGrammar.MatchString(uuid) && UsableUUID(uuid) {
		fmt.Fprintf(&b, "  uuid: %q\n", uuid)
	}
	b.WriteString("  nics:\n")
	for i, mac := range macs {
		fmt.Fprintf(&b, "    - {mac: %q", mac)
		if i == 0 && len(network) > 0 && nameGrammar.MatchString(network[0]) {
			fmt.Fprintf(&b, ", network: %q", network[0])
		}
		b.WriteString("}\n")
	}
	if len(macs) == 0 {
		b.WriteString("    []  # no usable interface was seen\n")
	}
	b.WriteString("  # bmc: {url: \"redfish://ADDRESS\", credentials: NAME}\n")
	for _, d := range facts.Disks {
		fmt.Fprintf(&b, "  # disk %s, %s, %s\n", comment(d.label()), comment(d.Model), DiskSizeText(d.Size))
	}
	return b.String()
}

// comment keeps foreign text on its line.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// usableMACs are the machine's Ethernet addresses, the one it booted from
// first, each once (bonds and VLANs share one).
func usableMACs(facts Facts) (macs []MAC) {
	seen := map[MAC]bool{}
	add := func(m MAC) {
		p, err := ParseMAC(string(m))
		if err != nil || notEthernet(p) || seen[p] {
			return
		}
		seen[p] = true
		macs = append(macs, p)
	}
	add(facts.Boot.PXEInterface)
	for _, n := range facts.Interfaces {
		add(n.MAC)
	}
	return macs
}

// notEthernet: too long (InfiniBand), zero, or a group address.
func notEthernet(m MAC) bool {
	return len(m) != len("52:54:00:00:00:05") || m == "00:00:00:00:00:00" || m.HardwareAddr()[0]&1 != 0
}

func nameFor(facts Facts, macs []MAC) string {
	if serial := strings.TrimSpace(facts.SystemVendor.SerialNumber); UsableSerial(serial) {
		name := strings.Trim(notNameRune.ReplaceAllString(strings.ToLower(serial), "-"), "-")
		if nameGrammar.MatchString(name) {
			return name
		}
	}
	if len(macs) > 0 {
		return "m-" + strings.ReplaceAll(string(macs[0]), ":", "")
	}
	return "unnamed"
}
