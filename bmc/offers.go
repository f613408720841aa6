package bmc

import (
	"context"
	"errors"
	"slices"
)

// Offers are the ways to boot that a BMC shows. What it shows it may still refuse.
type Offers struct {
	// HTTPBoot: it lists UefiHttp as a boot target, and has HttpBootUri.
	HTTPBoot bool `json:"httpBoot,omitempty"`
	// Media: it has a virtual CD drive, and lists a CD as a boot target where it lists any.
	Media bool `json:"media,omitempty"`
}

// Offerer is a Client that tells what it offers. Those of Dial and Fake are.
type Offerer interface {
	// Offers reads only. Over IPMI there are none.
	Offers(ctx context.Context) (Offers, error)
}

var (
	_ Offerer = (*session)(nil)
	_ Offerer = (*Fake)(nil)
)

func (s *session) Offers(ctx context.Context) (o Offers, err error) {
	d, ok := s.seen.driver.(*redfishDriver)
	if !ok {
		return o, nil
	}
	const verb = "read what it offers"
	err = s.call(ctx, verb, func(ctx context.Context) error {
		return d.again(ctx, func() error {
			system, future, err := d.boots(ctx)
			if err != nil {
				return err
			}
			at := system.boot
			if future != nil {
				at = future.boot
				if len(at.Targets) == 0 {
					at.Targets = system.boot.Targets
				}
			}
			lists := func(target string) bool { return slices.Contains(at.Targets, target) }
			o.HTTPBoot = lists("UefiHttp") && at.URI != nil
			o.Media = len(at.Targets) == 0 || lists("Cd") || lists("UsbCd")
			return nil
		})
	})
	if errors.Is(err, ErrUnsupported) {
		return Offers{}, nil // no boot override at all
	}
	if err != nil || !o.Media {
		return o, err
	}
	found, err := s.drives(ctx, verb, d)
	if errors.Is(err, ErrUnsupported) {
		err = nil
	}
	o.Media = slices.ContainsFunc(found, redfishDrive.cd)
	return o, err
}

// Offers of a Fake are all but what it lacks.
func (f *Fake) Offers(ctx context.Context) (o Offers, err error) {
	err = f.call(ctx, "offers", NextBoot{}, func(Fault) (func(), error) {
		o = Offers{HTTPBoot: !slices.Contains(f.Lacks, BootHTTP), Media: !f.NoMedia && !slices.Contains(f.Lacks, BootCD)}
		return nil, nil
	})
	return o, err
}

func (s *fakeSession) Offers(ctx context.Context) (Offers, error) {
	if err := s.open(); err != nil {
		return Offers{}, err
	}
	return s.Fake.Offers(ctx)
}
