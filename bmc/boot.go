package bmc

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// bootTimeout is how long a boot override is awaited, which shows at once or never.
const bootTimeout = 5 * time.Second

func (n NextBoot) validate() error {
	switch n.Device {
	case BootNetwork, BootHTTP, BootDisk, BootCD, BootDefault:
	default:
		return fmt.Errorf("set next boot: unknown device %q: want network, http, disk, cd or default", n.Device)
	}
	if n.Device == BootHTTP && !n.UEFI {
		return errors.New("set next boot: BIOS firmware has no HTTP Boot")
	}
	if n.URI == "" {
		return nil
	}
	if n.Device != BootHTTP {
		return fmt.Errorf("set next boot: only %q has a URI, not %q", BootHTTP, n.Device)
	}
	if u, err := url.Parse(n.URI); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("set next boot: want a URI http://… or https://…") // it may hold a token: not shown
	}
	return nil
}

// String is "network (UEFI)", for messages. The URI is left out: it may hold a token.
func (n NextBoot) String() string {
	switch {
	case n.Device == BootDefault || n.Device == "":
		return "default"
	case n.URI != "":
		return string(n.Device) + " (UEFI, with a URI)"
	case n.UEFI:
		return string(n.Device) + " (UEFI)"
	}
	return string(n.Device) + " (BIOS)"
}

// same ignores mode and URI where there is no override.
func (n NextBoot) same(o NextBoot) bool {
	return n == o || n.Device == BootDefault && o.Device == BootDefault
}

func (s *session) NextBoot(ctx context.Context) (NextBoot, error) {
	next := NextBoot{Device: BootDefault}
	err := s.call(ctx, "read next boot", func(ctx context.Context) error {
		now, err := s.seen.driver.nextBoot(ctx)
		if err == nil {
			next = now
		}
		return err
	})
	return next, err
}

func (s *session) SetNextBoot(ctx context.Context, next NextBoot) error {
	if err := next.validate(); err != nil {
		return err
	}
	verb := "set next boot to " + next.String()
	if next.Device == BootDefault {
		now, err := s.NextBoot(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", verb, err)
		}
		if now.Device == BootDefault {
			return nil
		}
	}
	setErr := s.call(ctx, verb, func(ctx context.Context) error { return s.seen.driver.setNextBoot(ctx, next) })
	// iDRAC 13G answers 400 and has changed it; others answer 200 and have not.
	// Only what is read back counts, after an error too.
	return s.verify(ctx, verb, bootTimeout, setErr, func(ctx context.Context) (string, error) {
		now, err := s.NextBoot(ctx)
		if err != nil || now.same(next) {
			return "", err
		}
		if now.Device == next.Device && now.UEFI == next.UEFI {
			return "it reads back with another URI", nil
		}
		return "it reads back as " + now.String(), nil
	})
}
