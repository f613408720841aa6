package bmc

import (
	"context"
	"errors"
	"fmt"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/types"
)

// ipmiSelectors are the boot device selectors of IPMI 2.0, table 28-14. There is
// none for HTTP Boot.
var ipmiSelectors = map[BootDevice]types.BootDeviceSelector{
	BootDefault: types.BootDeviceSelectorNoOverride,
	BootNetwork: types.BootDeviceSelectorForcePXE,
	BootDisk:    types.BootDeviceSelectorForceHardDrive,
	BootCD:      types.BootDeviceSelectorForceCDROM,
}

func (d *ipmiDriver) setNextBoot(ctx context.Context, next NextBoot) error {
	selector, ok := ipmiSelectors[next.Device]
	if !ok {
		return fmt.Errorf("%w: IPMI has no boot device %q", ErrUnsupported, next.Device)
	}
	armed := selector != types.BootDeviceSelectorNoOverride
	if next.Device == BootDisk && next.UEFI {
		device, err := d.device(ctx)
		if err != nil {
			return err
		}
		if device.quirks.uefiDisk != 0 {
			selector = device.quirks.uefiDisk
		}
	}
	flags := types.BootOptionParam_BootFlags{
		// No override with the valid bit set is an override of its own.
		BootFlagsValid:     armed,
		BIOSBootType:       types.BIOSBootType(next.UEFI && armed),
		BootDeviceSelector: selector,
	}
	err := d.with(ctx, ipmiRetries, func(lib *client.Client) error {
		if armed {
			// A BMC clears the valid bit 60 s after it was set unless told not to
			// (IPMI 2.0, 28.12, parameter 3 bit 3). Some reject the parameter.
			keep := types.BootOptionParam_BMCBootFlagValidBitClear{DontClearOnCommandReceivedTimeout: true}
			err := lib.SetSystemBootOptionsParamFor(ctx, &keep)
			var refused *types.ResponseError
			if err != nil && !errors.As(err, &refused) {
				return err
			}
		}
		return lib.SetSystemBootOptionsParamFor(ctx, &flags)
	})
	if err != nil || !armed {
		return err
	}
	// Learn here, where the flag is fresh, whether this BMC keeps the valid bit:
	// later, a missing one means that the flag expired.
	now, err := d.bootFlags(ctx)
	if err == nil && !now.BootFlagsValid && now.BootDeviceSelector == selector && !d.facts.get().SelectorOnly {
		d.facts.learn(func(f *Facts) { f.SelectorOnly = true })
		d.log.Warn("the BMC does not keep the valid bit of its boot flags; going by the device alone")
	}
	return nil
}

func (d *ipmiDriver) bootFlags(ctx context.Context) (flags types.BootOptionParam_BootFlags, err error) {
	err = d.with(ctx, ipmiRetries, func(lib *client.Client) error {
		return lib.GetSystemBootOptionsParamFor(ctx, &flags)
	})
	return flags, err
}

func (d *ipmiDriver) nextBoot(ctx context.Context) (NextBoot, error) {
	none := NextBoot{Device: BootDefault}
	flags, err := d.bootFlags(ctx)
	if err != nil {
		return none, err
	}
	if !flags.BootFlagsValid {
		if !d.facts.get().SelectorOnly {
			return none, nil
		}
		if _, err := d.device(ctx); err != nil {
			return none, err // is it still the firmware that this was learned of?
		}
		if !d.facts.get().SelectorOnly {
			return none, nil
		}
	}
	for device, selector := range ipmiSelectors {
		if selector != flags.BootDeviceSelector {
			continue
		}
		if device == BootDefault {
			return none, nil
		}
		return NextBoot{Device: device, UEFI: bool(flags.BIOSBootType)}, nil
	}
	if flags.BIOSBootType && flags.BootDeviceSelector == types.BootDeviceSelectorForceRemoteMedia {
		device, err := d.device(ctx)
		if err != nil {
			return none, err
		}
		if device.quirks.uefiDisk == flags.BootDeviceSelector {
			return NextBoot{Device: BootDisk, UEFI: true}, nil
		}
	}
	// Somebody armed the setup, or a floppy: neither ours nor "no override".
	return NextBoot{Device: BootDevice(fmt.Sprintf("ipmi-%#02x", uint8(flags.BootDeviceSelector)))}, nil
}
