package bmc

import (
	"context"
	"fmt"
)

// Identity is which machine and which BMC answer at this address. An empty field
// was not told.
type Identity struct {
	// UUID as SMBIOS has it, in lower case; over IPMI its byte order is a guess.
	UUID         string `json:"uuid,omitempty"`
	Serial       string `json:"serial,omitempty"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
	Part         string `json:"part,omitempty"`  // SKU or part number
	Board        string `json:"board,omitempty"` // serial number of the main board (IPMI, Dell)
	BIOS         string `json:"bios,omitempty"`  // version; IPMI does not tell it

	BMC BMCIdentity `json:"bmc"`
}

// BMCIdentity is the BMC's own.
type BMCIdentity struct {
	UUID     string `json:"uuid,omitempty"` // of its service
	Vendor   string `json:"vendor,omitempty"`
	Model    string `json:"model,omitempty"`
	Firmware string `json:"firmware,omitempty"`
}

// Inventory is what the BMC tells of the hardware. BMCs leave holes: what could
// not be read is in Holes and never an error of the whole.
type Inventory struct {
	Identity
	Processors []Processor `json:"processors,omitempty"`
	Memory     []Module    `json:"memory,omitempty"`
	Disks      []Disk      `json:"disks,omitempty"`
	NICs       []NIC       `json:"nics,omitempty"`
	Firmware   []Firmware  `json:"firmware,omitempty"`
	// SecureBoot is on or off, at the present start and, where that is otherwise, from the
	// next one; "" not told.
	SecureBoot string `json:"secureBoot,omitempty"`
	// Holes are resources that could not be read, each with its reason.
	Holes []string `json:"holes,omitempty"`
}

// Processor is one in its socket.
type Processor struct {
	Slot         string `json:"slot,omitempty"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
	Cores        int    `json:"cores,omitempty"`
	Threads      int    `json:"threads,omitempty"`
}

// Module is one of memory.
type Module struct {
	Slot         string `json:"slot,omitempty"`
	Type         string `json:"type,omitempty"`
	MiB          int64  `json:"mib,omitempty"`
	MHz          int    `json:"mhz,omitempty"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Part         string `json:"part,omitempty"`
	Serial       string `json:"serial,omitempty"`
}

// Disk is one drive, as its controller shows it to the BMC.
type Disk struct {
	Name         string `json:"name,omitempty"`
	Controller   string `json:"controller,omitempty"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
	Serial       string `json:"serial,omitempty"`
	Protocol     string `json:"protocol,omitempty"` // SATA, SAS, NVMe
	Media        string `json:"media,omitempty"`    // HDD, SSD
	Bytes        int64  `json:"bytes,omitempty"`
	Health       string `json:"health,omitempty"`
}

// NIC is one Ethernet interface of the machine.
type NIC struct {
	Name string `json:"name,omitempty"`
	MAC  string `json:"mac,omitempty"` // lower case, with colons; as it is where it is no such address
	Link string `json:"link,omitempty"`
	Mbps int    `json:"mbps,omitempty"`
}

// Firmware is one component's.
type Firmware struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	// State of what is there and not in use: previous, available (Dell); "" it is in use.
	State string `json:"state,omitempty"`
}

// Describer is a Client that tells what it is in front of. Those of Dial and Fake
// are; over IPMI there is no more than the identity.
type Describer interface {
	Identity(ctx context.Context) (Identity, error)
	Inventory(ctx context.Context) (Inventory, error)
}

var (
	_ Describer = (*session)(nil)
	_ Describer = (*Fake)(nil)
)

// Identity costs three to five requests.
func (s *session) Identity(ctx context.Context) (id Identity, err error) {
	d, ok := s.seen.driver.(interface {
		identity(context.Context) (Identity, error)
	})
	if !ok {
		return id, fmt.Errorf("read identity: %w", ErrUnsupported)
	}
	err = s.call(ctx, "read identity", func(ctx context.Context) (err error) {
		id, err = d.identity(ctx)
		return err
	})
	return id, err
}
