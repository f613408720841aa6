package bmc

import (
	"context"
	"fmt"
	"strings"
)

// consoleOffer is how a Redfish BMC gives out a machine's serial console; a port of
// 0 is a way that it does not offer.
type consoleOffer struct {
	ssh     int
	command string // to be typed into the BMC's own shell first; "": it is none
	ipmi    int
}

// redfishConsole is ComputerSystem.SerialConsole, and the older one of a Manager.
type redfishConsole struct {
	SSH  redfishConsoleService `json:"SSH"`
	IPMI redfishConsoleService `json:"IPMI"`
	// of a Manager, whose ports stand in its NetworkProtocol
	Enabled bool     `json:"ServiceEnabled"`
	Ways    []string `json:"ConnectTypesSupported"`
}

type redfishConsoleService struct {
	Enabled bool   `json:"ServiceEnabled"`
	Port    int    `json:"Port"`
	Command string `json:"ConsoleEntryCommand"`
}

// redfishProtocol is one of a ManagerNetworkProtocol.
type redfishProtocol struct {
	Enabled bool `json:"ProtocolEnabled"`
	Port    int  `json:"Port"`
}

// Ports where a BMC tells none.
const (
	sshPort  = 22
	ipmiPort = 623
)

// consoles reads what is on offer: the system's word, which names ports and commands,
// else its manager's.
func (d *redfishDriver) consoles(ctx context.Context) (offer consoleOffer, err error) {
	err = d.again(ctx, func() error {
		offer, err = d.readConsoles(ctx)
		return err
	})
	return offer, err
}

func (d *redfishDriver) readConsoles(ctx context.Context) (consoleOffer, error) {
	var system struct {
		Serial       redfishConsole `json:"SerialConsole"`
		Manufacturer text           `json:"Manufacturer"`
		Links        redfishLinks   `json:"Links"`
	}
	if _, err := d.get(ctx, d.transport.system, &system); err != nil {
		return consoleOffer{}, err
	}
	offer := offerOf(system.Serial)
	if offer.ssh > 0 || offer.ipmi > 0 {
		return offer, nil
	}
	for _, link := range system.Links.ManagedBy {
		at := d.local(link.ID)
		if at == "" {
			continue
		}
		var manager struct {
			Serial   redfishConsole `json:"SerialConsole"`
			Protocol redfishLink    `json:"NetworkProtocol"`
		}
		if _, err := d.get(ctx, at, &manager); gone(err) {
			continue
		} else if err != nil {
			return offer, err
		}
		if !manager.Serial.Enabled {
			continue
		}
		var protocols struct{ SSH, IPMI redfishProtocol }
		if at := d.local(manager.Protocol.ID); at != "" {
			if _, err := d.get(ctx, at, &protocols); err != nil && !gone(err) {
				return offer, err
			}
		}
		return offerOfManager(manager.Serial.Ways, protocols.SSH, protocols.IPMI, quirksOf(string(system.Manufacturer), "", "").console), nil
	}
	return offer, nil
}

// offerOf is what a system says.
func offerOf(c redfishConsole) (o consoleOffer) {
	if c.SSH.Enabled {
		o.ssh, o.command = portOr(c.SSH.Port, sshPort), oneWord(c.SSH.Command)
	}
	if c.IPMI.Enabled {
		o.ipmi = portOr(c.IPMI.Port, ipmiPort)
	}
	return o
}

// offerOfManager is what a manager says. Behind its SSH is the BMC's own shell, and
// only the vendor's documents tell how the console is reached from there.
func offerOfManager(ways []string, ssh, ipmi redfishProtocol, command string) (o consoleOffer) {
	for _, way := range ways {
		switch {
		case way == "SSH" && ssh.Enabled && command != "":
			o.ssh, o.command = portOr(ssh.Port, sshPort), command
		case way == "IPMI" && ipmi.Enabled:
			o.ipmi = portOr(ipmi.Port, ipmiPort)
		}
	}
	return o
}

func portOr(port, usual int) int {
	if port < 1 || port > 65535 {
		return usual
	}
	return port
}

// oneWord is a command that is one line: it is typed.
func oneWord(command string) string {
	if strings.ContainsFunc(command, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return ""
	}
	return strings.TrimSpace(command)
}

// consoles implements Fleet.Console's question.
func (s *session) consoles(ctx context.Context) (offer consoleOffer, err error) {
	d, err := s.redfish("read what consoles there are")
	if err != nil {
		return offer, err
	}
	err = s.call(ctx, "read what consoles there are", func(ctx context.Context) error {
		offer, err = d.consoles(ctx)
		return err
	})
	return offer, err
}

// redfishConsole opens a console by what a Redfish BMC offers: SSH where its host key is
// pinned, else IPMI, which needs no pin.
func (f *Fleet) redfishConsole(ctx context.Context, b *board, a address, t Target, o ConsoleOptions) (Console, error) {
	var offer consoleOffer
	err := f.Do(ctx, t, func(ctx context.Context, c Client) error {
		s, ok := c.(*session)
		if !ok {
			return fmt.Errorf("%w: a console", ErrUnsupported)
		}
		var err error
		offer, err = s.consoles(ctx)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case offer.ssh > 0 && (t.HostKey != "" || offer.ipmi == 0):
		a.port = offer.ssh
		return b.dial(ctx, t, func(ctx context.Context) (Console, error) { return dialSSH(ctx, a, t, offer.command) })
	case offer.ipmi > 0:
		a.scheme, a.port = "ipmi", offer.ipmi
		return b.dial(ctx, t, func(ctx context.Context) (Console, error) { return dialSOL(ctx, a, t, o) })
	}
	return nil, fmt.Errorf("%w: it tells of no serial console by SSH or IPMI", ErrUnsupported)
}
