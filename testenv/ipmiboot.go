package testenv

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// ipmiBootExpiry is how long boot flags are valid without a power command
// (28.12), unless parameter 3 or BMCFaults.BootExpiry says otherwise.
const ipmiBootExpiry = 60 * time.Second

// ipmiBootOptions are the boot option parameters (28.14) that the front does not
// keep: all but the override.
type ipmiBootOptions struct {
	mu       sync.Mutex
	progress byte    // 0: set in progress
	service  byte    // 1: service partition selector
	scan     byte    // 2: service partition scan
	keep     byte    // 3: what does not clear the valid bit
	ack      [2]byte // 4: who handled the boot info
	rest     [4]byte // 5, without its first byte: what is no boot device
}

func (o *ipmiBootOptions) reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.progress = 0
}

// ipmiDevices are the boot device selectors (28.14, parameter 5).
var ipmiDevices = map[BootDevice]byte{BootPXE: 0x1, BootDisk: 0x2, BootCD: 0x5}

// SupermicroIANA is the enterprise number of Supermicro.
const SupermicroIANA = 10876

// bootSelector is the selector of a device on this BMC.
func (b *IPMIBMC) bootSelector(once BootOnce) byte {
	if b.bmc.Info.ManufacturerID == SupermicroIANA && once.UEFI && once.Device == BootDisk {
		return 0x9 // as Ironic's clients send it
	}
	return ipmiDevices[once.Device]
}

const (
	ipmiFlagValid      = 0x80
	ipmiFlagPersistent = 0x40
	ipmiFlagEFI        = 0x20
)

// setBootOption implements Set System Boot Options (28.12).
func (b *IPMIBMC) setBootOption(_ context.Context, _ *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
	if len(data) < 1 {
		return nil, types.CodeRequestDataLengthInvalid, nil
	}
	code := b.setBootParameter(data[0]&0x7f, data[1:])
	if data[0]&0x7f != 5 {
		b.record("read", "Set System Boot Options", false)
	}
	return nil, code, nil
}

func (b *IPMIBMC) setBootParameter(n byte, data []byte) types.CompletionCode {
	o := &b.options
	sizes := map[byte]int{0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 5}
	size, ok := sizes[n]
	switch {
	case !ok, n == 3 && b.now().RejectParam3:
		return types.CodeParameterNotSupported
	case len(data) == 0:
		return types.CodeOK // no change but whether the parameter is locked
	case len(data) < size:
		return types.CodeRequestDataLengthInvalid
	case n == 5:
		return b.setBootFlags(data)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch n {
	case 0:
		if data[0]&3 == 1 && o.progress == 1 {
			return types.CodeParamConfigSetInProgressConflict
		}
		o.progress = data[0] & 1 // 2 is to commit, which is done at once here
	case 1:
		o.service = data[0]
	case 2:
		o.scan = data[0] & 3
	case 3:
		o.keep = data[0] & 0x1f
		b.keepBoot(data[0]&0x08 != 0)
	case 4:
		// The first byte says which bits of the second are to be written.
		o.ack = [2]byte{0, o.ack[1]&^data[0] | data[1]&data[0]}
	}
	return types.CodeOK
}

func (b *IPMIBMC) setBootFlags(data []byte) types.CompletionCode {
	once := BootOnce{UEFI: data[0]&ipmiFlagEFI != 0}
	selector := data[1] >> 2 & 0x0f
	if data[0]&ipmiFlagValid == 0 || selector == 0 {
		once = BootOnce{}
	} else {
		for device := range ipmiDevices {
			if b.bootSelector(BootOnce{Device: device, UEFI: once.UEFI}) == selector {
				once.Device = device
			}
		}
		if once.Device == BootCD && !b.hasDrive() {
			once.Device = BootNone
		}
		if once.Device == BootNone {
			b.record("set-boot", "a device that the machine does not have", false)
			return types.CodeRequestDataFieldInvalid
		}
	}
	if err := b.setBootFor(once, data[0]&ipmiFlagPersistent != 0); err != nil {
		return types.CodeUnspecifiedError
	}
	b.options.mu.Lock()
	defer b.options.mu.Unlock()
	copy(b.options.rest[:], data[1:5])
	return types.CodeOK
}

func (b *IPMIBMC) hasDrive() bool {
	m, ok := b.machine.(BootDevices)
	return ok && slices.Contains(m.BootDevices(), BootCD)
}

// getBootOption implements Get System Boot Options (28.13).
func (b *IPMIBMC) getBootOption(_ context.Context, _ *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
	if len(data) < 1 {
		return nil, types.CodeRequestDataLengthInvalid, nil
	}
	o, n := &b.options, data[0]&0x7f
	var value []byte
	o.mu.Lock()
	switch n {
	case 0:
		value = []byte{o.progress}
	case 1:
		value = []byte{o.service}
	case 2:
		value = []byte{o.scan}
	case 3:
		value = []byte{o.keep}
	case 4:
		value = o.ack[:]
	}
	o.mu.Unlock()
	switch {
	case n == 5:
		value = b.bootFlags()
	case value == nil, n == 3 && b.now().RejectParam3:
		return nil, types.CodeParameterNotSupported, nil
	}
	return append([]byte{1, n}, value...), types.CodeOK, nil
}

// bootFlags are those of the override that the next start would obey.
func (b *IPMIBMC) bootFlags() []byte {
	once, persistent := b.bootFor()
	if once.Device == BootNone {
		return make([]byte, 5)
	}
	b.options.mu.Lock()
	flags := append([]byte{ipmiFlagValid}, b.options.rest[:]...)
	b.options.mu.Unlock()
	if persistent {
		flags[0] |= ipmiFlagPersistent
	}
	if once.UEFI {
		flags[0] |= ipmiFlagEFI
	}
	flags[1] = flags[1]&^0x3c | b.bootSelector(once)<<2
	return flags
}
