// Package bmc drives a machine's board management controller: few verbs, each
// safe to repeat, each believed only after it was read back.
package bmc

import (
	"context"
	"errors"
)

// PowerState is what the BMC says of the machine.
type PowerState string

const (
	PowerOn      PowerState = "on"
	PowerOff     PowerState = "off"
	PowerUnknown PowerState = "unknown"
)

// BootDevice is where the next boot goes.
type BootDevice string

const (
	BootNetwork BootDevice = "network"
	BootHTTP    BootDevice = "http" // UEFI HTTP Boot
	BootDisk    BootDevice = "disk"
	BootCD      BootDevice = "cd"      // a virtual one, too
	BootDefault BootDevice = "default" // no override
)

// NextBoot is a one-time boot override.
type NextBoot struct {
	Device BootDevice
	UEFI   bool // the firmware's real mode; meaningless for BootDefault
	// URI that BootHTTP loads, http or https; empty is the one that DHCP gives.
	URI string
}

// Client is one BMC. Calls are serialised by the implementation; a call ends
// with its context. SetPower and SetNextBoot return nil only when the new state
// was read back.
type Client interface {
	Power(ctx context.Context) (PowerState, error)
	// On makes sure that the machine is on.
	On(ctx context.Context) error
	// Off makes sure that it is off. Soft asks the operating system and returns
	// ErrUnverified when it is still on at the deadline of ctx; hard cuts power.
	Off(ctx context.Context, hard bool) error
	// NextBoot reads the override.
	NextBoot(ctx context.Context) (NextBoot, error)
	// SetNextBoot sets it once, or clears it with BootDefault. A device, mode or
	// URI that the BMC does not offer is ErrUnsupported.
	SetNextBoot(ctx context.Context, next NextBoot) error
	Close(ctx context.Context) error
}

// Reasons a call can end with; match with errors.Is. The text wrapped around
// them holds what the BMC said.
var (
	ErrAuth = errors.New("the BMC refused the user or password")
	// ErrChangePassword: the password is right, and good for nothing but to be changed.
	ErrChangePassword = errors.New("the BMC wants the password changed first")
	ErrLockedOut      = errors.New("the BMC has locked the account, or this server, out")
	ErrPin            = errors.New("the BMC's certificate is not the pinned one")
	ErrUnreachable    = errors.New("the BMC does not answer")
	ErrTimeout        = errors.New("the BMC did not answer in time")
	ErrBusy           = errors.New("the BMC is busy")
	ErrUnsupported    = errors.New("the BMC does not offer this")
	ErrRejected       = errors.New("the BMC rejected the request")
	ErrUnverified     = errors.New("the BMC accepted the request but the change was not seen")
)
