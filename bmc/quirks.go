package bmc

import (
	"strings"
	"sync"

	"github.com/bmc-toolbox/bmclib/v2/providers/dell"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Facts is what was learned of one BMC by talking to it, to be stored with the
// machine and given back in Target.Facts. All of it is about the way to ask: a
// wrong fact costs a refused request, and what was changed is read back anyway.
// Facts of another board, or of another firmware, are forgotten.
type Facts struct {
	Vendor   string `json:"vendor,omitempty"`
	Model    string `json:"model,omitempty"`
	Firmware string `json:"firmware,omitempty"` // of the BMC

	// BootForm is the form of the boot override that it took, BootAt where.
	BootForm string `json:"bootForm,omitempty"`
	BootAt   string `json:"bootAt,omitempty"`
	// IfMatch is how it wants the ETag: given or strong.
	IfMatch string `json:"ifMatch,omitempty"`
	// Drive that took a medium, and the forms that put it in and out.
	Drive      string `json:"drive,omitempty"`
	InsertForm string `json:"insertForm,omitempty"`
	EjectForm  string `json:"ejectForm,omitempty"`
	// SelectorOnly: it drops the valid bit of the IPMI boot flags at once and keeps
	// the selector, so that the selector alone says whether one is armed.
	SelectorOnly bool `json:"selectorOnly,omitempty"`
}

// Learner is a Client that tells what it learned. Those of Dial and Fake are.
type Learner interface {
	Facts() Facts
}

var (
	_ Learner = (*session)(nil)
	_ Learner = (*Fake)(nil)
)

// quirks are ways of a BMC that are not learned by asking, or cheaper if known.
type quirks struct {
	// cd are the names of the virtual CD as a boot target, the best first.
	cd []string
	// insert is the form of an insertion to begin with.
	insert string
	// tag: the serial number of the machine, as SMBIOS has it, is told as its SKU;
	// SerialNumber is that of its board.
	tag bool
	// console is what is typed into the BMC's own shell to reach the machine's console.
	console string
	// provider of bmclib for what Redfish has no word for; "" none.
	provider string
	// uefiDisk is the IPMI selector by which UEFI firmware boots its disk.
	uefiDisk types.BootDeviceSelector
}

// profile is a row of the table: which BMCs, what of them, whose word it is.
type profile struct {
	vendor   string // the name without blanks and signs, in lower case, begins so
	model    string // begins so; "" any
	firmware string // of the BMC, begins so; "" any
	quirks   quirks
	source   string
	metal    bool // seen by ourselves on the hardware
}

// profiles are applied in their order: what a later row sets overrules.
var profiles = []profile{
	{quirks: quirks{cd: []string{"Cd", "UsbCd"}}, source: "DSP0268, ComputerSystem"},
	{vendor: "dell", quirks: quirks{tag: true}, source: "its UUID spells the SKU, which is the service tag (recorded trees of R750)"},
	{vendor: "supermicro", quirks: quirks{cd: []string{"UsbCd", "Cd"}, uefiDisk: types.BootDeviceSelectorForceRemoteMedia},
		source: "sushy (UsbCd), Ironic's ipmitool driver (raw 0x24 for a disk under UEFI)"},
	{vendor: "supermicro", model: "ARS-111GL-NHR", quirks: quirks{cd: []string{"Cd", "UsbCd"}}, source: "sushy"},
	{vendor: "lenovo", model: "ThinkSystem SD530", quirks: quirks{insert: "patch"}, source: "sushy: no InsertMedia action"},
	{vendor: "dell", quirks: quirks{console: "console com2"}, source: "iDRAC's manual, for firmware whose system tells of no console"},
	{vendor: "dell", quirks: quirks{provider: dell.ProviderName}, source: "bmclib"},
	{vendor: "hpe", quirks: quirks{console: "vsp"}, source: "iLO's manual, likewise"},
	{vendor: "hewlettpackard", quirks: quirks{console: "vsp"}, source: "likewise"},
	{vendor: "lenovo", quirks: quirks{console: "console start"}, source: "XCC's manual, likewise"},
	{vendor: "nokia", quirks: quirks{insert: "protocol"}, source: "sushy: TransferProtocolType is required"},
}

// quirksOf is what the table says of a BMC.
func quirksOf(vendor, model, firmware string) (q quirks) {
	vendor = plainVendor(vendor)
	for _, p := range profiles {
		if !strings.HasPrefix(vendor, p.vendor) || !strings.HasPrefix(model, p.model) || !strings.HasPrefix(firmware, p.firmware) {
			continue
		}
		if p.quirks.cd != nil {
			q.cd = p.quirks.cd
		}
		if p.quirks.insert != "" {
			q.insert = p.quirks.insert
		}
		q.tag = q.tag || p.quirks.tag
		if p.quirks.console != "" {
			q.console = p.quirks.console
		}
		if p.quirks.provider != "" {
			q.provider = p.quirks.provider
		}
		if p.quirks.uefiDisk != 0 {
			q.uefiDisk = p.quirks.uefiDisk
		}
	}
	return q
}

// plainVendor makes "Super Micro Computer, Inc." and "Supermicro" begin alike.
func plainVendor(vendor string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return -1
	}, vendor)
}

// memory holds the Facts of one BMC.
type memory struct {
	mu    sync.Mutex
	facts Facts
}

func (m *memory) get() Facts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.facts
}

func (m *memory) learn(fact func(*Facts)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fact(&m.facts)
}

// of says whom the facts are about, as far as it is known; another's are forgotten.
func (m *memory) of(vendor, model, firmware string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	other := func(was, now string) bool { return was != "" && now != "" && was != now }
	if other(m.facts.Vendor, vendor) || other(m.facts.Model, model) || other(m.facts.Firmware, firmware) {
		m.facts = Facts{}
	}
	for to, now := range map[*string]string{&m.facts.Vendor: vendor, &m.facts.Model: model, &m.facts.Firmware: firmware} {
		if now != "" {
			*to = now
		}
	}
}

// Facts learned so far.
func (s *session) Facts() Facts {
	if l, ok := s.seen.driver.(interface{ learned() Facts }); ok {
		return l.learned()
	}
	return Facts{}
}

func (d *redfishDriver) learned() Facts { return d.facts.get() }
func (d *ipmiDriver) learned() Facts    { return d.facts.get() }
