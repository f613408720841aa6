package testenv

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"recast/agent"
	"recast/inventory"
)

// simVars are the variables of a simulated UEFI: two entries of its own, for its disk
// and its network card, and what the ramdisk makes of them.
type simVars struct {
	mu   sync.Mutex
	vars map[string][]byte
}

const (
	simVarGUID     = "-8be4df61-93ca-11d2-aa0d-00e098032b8c" // EFI_GLOBAL_VARIABLE
	simNetworkName = "UEFI PXE"
)

var _ agent.Variables = (*simVars)(nil)

func newSimVars(networkFirst bool) *simVars {
	end := []byte{0x7f, 0xff, 4, 0}
	card := slices.Concat([]byte{3, 11, 37, 0}, make([]byte, 33), end) // a hardware address
	v := &simVars{vars: map[string][]byte{
		"Boot0000" + simVarGUID:  agent.LoadOption{Attributes: 1, Description: "UEFI disk", Path: end}.Encode(),
		"Boot0001" + simVarGUID:  agent.LoadOption{Attributes: 1, Description: simNetworkName, Path: card}.Encode(),
		"BootOrder" + simVarGUID: {0, 0, 1, 0},
	}}
	if networkFirst {
		v.vars["BootOrder"+simVarGUID] = []byte{1, 0, 0, 0}
	}
	return v
}

func (v *simVars) List() ([]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.vars)), nil
}

func (v *simVars) Get(name string) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	b, ok := v.vars[name]
	if !ok {
		return nil, fmt.Errorf("read %s: %w", name, fs.ErrNotExist)
	}
	return slices.Clone(b), nil
}

func (v *simVars) Set(name string, _ uint32, value []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.vars[name] = slices.Clone(value)
	return nil
}

func (v *simVars) Delete(name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.vars, name)
	return nil
}

// stub says, or no longer, that kernel and initrd came as one.
func (v *simVars) stub(unified bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	const name = "StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	delete(v.vars, name)
	if unified {
		v.vars[name] = []byte("s\x00")
	}
}

// start is the order of one start: BootNext, which is for one start, then BootOrder.
func (v *simVars) start(putsDiskBack bool) (order []BootDevice) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if b := v.vars["BootOrder"+simVarGUID]; putsDiskBack && len(b) >= 2 && !slices.ContainsFunc(simEntries(b), func(n uint16) bool { return v.device(n) == BootDisk }) {
		v.vars["BootOrder"+simVarGUID] = slices.Concat(b[:2], []byte{0, 0}, b[2:])
	}
	numbers := slices.Concat(v.vars["BootNext"+simVarGUID], v.vars["BootOrder"+simVarGUID])
	delete(v.vars, "BootNext"+simVarGUID)
	for _, n := range simEntries(numbers) {
		if d := v.device(n); d != BootNone {
			order = append(order, d)
		}
	}
	return order
}

func simEntries(b []byte) (out []uint16) {
	for ; len(b) >= 2; b = b[2:] {
		out = append(out, binary.LittleEndian.Uint16(b))
	}
	return out
}

// simAgain is a program on a disk's config volume.
const simAgain BootDevice = "again"

// device that an entry leads to; the lock is held.
func (v *simVars) device(n uint16) BootDevice {
	o, err := agent.ParseLoadOption(v.vars[fmt.Sprintf("Boot%04X%s", n, simVarGUID)])
	switch {
	case err != nil || o.Attributes&1 == 0:
		return BootNone
	case o.Description == simNetworkName:
		return BootPXE
	case o.Description == inventory.AgainLabel:
		return simAgain
	}
	return BootDisk
}

// by notes what the start goes on with: BootCurrent.
func (v *simVars) by(d BootDevice) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(v.vars)) {
		digits, ok := strings.CutPrefix(strings.TrimSuffix(name, simVarGUID), "Boot")
		n, err := strconv.ParseUint(digits, 16, 16)
		if ok && err == nil && len(digits) == 4 && v.device(uint16(n)) == d {
			v.vars["BootCurrent"+simVarGUID] = binary.LittleEndian.AppendUint16(nil, uint16(n))
			return
		}
	}
}
