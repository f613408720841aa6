package inventory

// Resolved is a Definition with defaults filled in and every reference
// replaced by a digest: the content of a generation. Substitutions stay
// unresolved. What only steers the way there (deadlines, attempts, rollout,
// names) is left out.
type Resolved struct {
	Image      ResolvedImage `json:"image"`
	Every      BootEvery     `json:"every"`
	Gate       *Gate         `json:"gate,omitempty"`
	KernelArgs []string      `json:"kernelArgs,omitempty"`
	Select     DiskSelect    `json:"select"`
	Wipe       WipeMode      `json:"wipe"`
	Config     Config        `json:"config"`
	Evidence   EvidenceLevel `json:"evidence"`
	// Secrets that Config refers to, by name, with the version in force.
	Secrets map[string]int `json:"secrets,omitempty"`
}

// ResolvedImage is an Image without its name and source, which may change
// without changing what runs.
type ResolvedImage struct {
	Type   ImageType `json:"type"`
	Arch   Arch      `json:"arch"`
	Digest Digest    `json:"digest"`
	// Immutable where a gate proves them: nothing else depends on them.
	Immutable []string `json:"immutable,omitempty"`
	// Verity likewise.
	Verity map[string]string `json:"verity,omitempty"`
	// State likewise, where every boot puts back all others.
	State []string `json:"state,omitempty"`
	// Boot where a gate may start it.
	Boot *ImageBoot `json:"boot,omitempty"`
}

// Generation is a Resolved with the SHA-256 of its RFC 8785 JSON.
type Generation struct {
	Digest    Digest   `json:"digest"`
	Resolved  Resolved `json:"resolved"`
	Canonical []byte   `json:"-"`
}

// Rendered is what one machine gets of a generation: every substitution done
// but secrets, which appear as "${secret.NAME}" here and in the digest by
// name and version, never by value.
type Rendered struct {
	Machine    string   `json:"machine"`
	Generation Digest   `json:"generation"`
	Digest     Digest   `json:"digest"`
	UserData   string   `json:"userData,omitempty"`
	KernelArgs []string `json:"kernelArgs,omitempty"`
	// NICs with the Network each is on, for the operating system's own network
	// configuration; their addresses are part of the digest.
	NICs []RenderedNIC `json:"nics,omitempty"`
}

// RenderedNIC is one interface as the operating system shall configure it.
// It asks DHCP, which gives the declared address, but for a static one.
type RenderedNIC struct {
	MAC     MAC    `json:"mac"`
	Network string `json:"network,omitempty"`
	IP      string `json:"ip,omitempty"`
	IP6     string `json:"ip6,omitempty"`
	// VLAN and Routes of its Network; Routes where DHCP gives none of ours.
	VLAN   int     `json:"vlan,omitempty"`
	Routes []Route `json:"routes,omitempty"`
	// Static where no DHCP gives the address.
	Static *Static `json:"static,omitempty"`
}
