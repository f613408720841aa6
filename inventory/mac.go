package inventory

import (
	"fmt"
	"net"
)

// MAC is a hardware address in lower-case colon form ("52:54:00:00:00:05"),
// comparable so that it can key a map. The zero value means "none".
type MAC string

// ParseMAC accepts every form net.ParseMAC does.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return "", fmt.Errorf("parse hardware address %q: want six pairs of hex digits such as 52:54:00:00:00:05", s)
	}
	return MACOf(hw), nil
}

// MACOf converts from the standard library's form.
func MACOf(hw net.HardwareAddr) MAC { return MAC(hw.String()) }

// HardwareAddr converts to the standard library's form; nil for the zero value.
func (m MAC) HardwareAddr() net.HardwareAddr {
	hw, err := net.ParseMAC(string(m))
	if err != nil {
		return nil
	}
	return hw
}

func (m MAC) String() string { return string(m) }

// UnmarshalText normalises on the way in.
func (m *MAC) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*m = ""
		return nil
	}
	p, err := ParseMAC(string(text))
	if err != nil {
		return err
	}
	*m = p
	return nil
}
