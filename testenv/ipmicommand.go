package testenv

import (
	"context"
	"fmt"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// ipmiRule is how the log calls a command that changes something, and who may
// send it (IPMI 2.0, appendix G). go-ipmi knows the rights of few.
type ipmiRule struct {
	verb string
	may  bmc.PrivilegeLevel
}

// ipmiKey is the command on the wire.
type ipmiKey struct {
	netFn types.NetFn
	id    uint8
}

func ipmiKeyOf(c types.Command) ipmiKey { return ipmiKey{c.NetFn, c.ID} }

var ipmiRules = map[ipmiKey]ipmiRule{
	// What power() and setBoot() record by themselves.
	ipmiKeyOf(types.CommandChassisControl):       {"", bmc.PrivilegeLevelOperator},
	ipmiKeyOf(types.CommandSetSystemBootOptions): {"", bmc.PrivilegeLevelOperator},
	// A part of every login.
	ipmiKeyOf(types.CommandSetSessionPrivilegeLevel): {"", bmc.PrivilegeLevelCallback},

	ipmiKeyOf(types.CommandCloseSession):          {"logout", bmc.PrivilegeLevelCallback},
	ipmiKeyOf(types.CommandChassisIdentify):       {"identify", bmc.PrivilegeLevelOperator},
	ipmiKeyOf(types.CommandColdReset):             {"restart-bmc", bmc.PrivilegeLevelAdministrator},
	ipmiKeyOf(types.CommandWarmReset):             {"restart-bmc", bmc.PrivilegeLevelAdministrator},
	ipmiKeyOf(types.CommandSetUserAccess):         {"set-account", bmc.PrivilegeLevelAdministrator},
	ipmiKeyOf(types.CommandSetUsername):           {"set-account", bmc.PrivilegeLevelAdministrator},
	ipmiKeyOf(types.CommandSetUserPassword):       {"set-account", bmc.PrivilegeLevelAdministrator},
	ipmiKeyOf(types.CommandSetUserPayloadAccess):  {"set-account", bmc.PrivilegeLevelAdministrator},
	ipmiKeyOf(types.CommandAddSELEntry):           {"add-log", bmc.PrivilegeLevelOperator},
	ipmiKeyOf(types.CommandPlatformEventMessage):  {"add-log", bmc.PrivilegeLevelOperator},
	ipmiKeyOf(types.CommandDeleteSELEntry):        {"clear-log", bmc.PrivilegeLevelOperator},
	ipmiKeyOf(types.CommandClearSEL):              {"clear-log", bmc.PrivilegeLevelOperator},
	ipmiKeyOf(types.CommandSetSELTime):            {"set-clock", bmc.PrivilegeLevelOperator},
	ipmiKeyOf(types.CommandActivatePayload):       {"console", bmc.PrivilegeLevelUser},
	ipmiKeyOf(types.CommandDeactivatePayload):     {"console", bmc.PrivilegeLevelUser},
	ipmiKeyOf(types.CommandSetSOLConfigParam):     {"set-service", bmc.PrivilegeLevelAdministrator},
	ipmiKeyOf(types.CommandGetChannelAccess):      {"read", bmc.PrivilegeLevelUser},
	ipmiKeyOf(types.CommandGetUserPayloadAccess):  {"read", bmc.PrivilegeLevelOperator},
	ipmiKeyOf(types.CommandGetSystemBootOptions):  {"read", bmc.PrivilegeLevelOperator},
	ipmiKeyOf(types.CommandGetSystemRestartCause): {"read", bmc.PrivilegeLevelUser},
}

// register replaces what go-ipmi leaves out, or takes for something else.
func (b *IPMIBMC) register(r *handlers.Registry) {
	b.registerChassis(r)
	b.registerReset(r)
	r.RegisterFunc(types.CommandGetSystemBootOptions, b.getBootOption)
	r.RegisterFunc(types.CommandSetSystemBootOptions, b.setBootOption)
	r.RegisterFunc(types.CommandGetChannelAccess, b.getChannelAccess)
	r.RegisterFunc(types.CommandGetSystemGUID, b.getSystemGUID)
	r.RegisterFunc(types.CommandGetSessionInfo, b.getSessionInfo)
	b.registerSEL(r)
	b.registerSensors(r)
}

// ipmiMiddleware logs every command, once, and applies the faults.
type ipmiMiddleware struct {
	bmc  *IPMIBMC
	next handlers.Handler
}

func (m ipmiMiddleware) Handle(ctx context.Context, h *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
	b, key, name := m.bmc, ipmiKeyOf(h.Command), h.Command.Name
	if name == "" {
		name = fmt.Sprintf("command %#02x of function %#02x", key.id, uint8(key.netFn))
	}
	if h.Session == nil && h.V15Session == nil {
		b.record("read", name, false)
		return m.next.Handle(ctx, h, data)
	}
	faults := b.now()
	if !b.wait(faults.Delay) {
		return nil, types.CodeNodeBusy, nil
	}
	rule, known := ipmiRules[key]
	if !known {
		rule = ipmiRule{"read", bmc.PrivilegeLevelUser}
	}
	session := key == ipmiKeyOf(types.CommandCloseSession) || key == ipmiKeyOf(types.CommandSetSessionPrivilegeLevel)
	switch {
	case session:
	case faults.Busy:
		b.record("read", name+": busy", false)
		return nil, types.CodeNodeBusy, nil
	case faults.CutShort:
		b.record("read", name+": cut short", false)
		return []byte{1}, types.CodeOK, nil
	case h.Session != nil && h.Session.PrivilegeLevel < rule.may:
		b.record("read", name+": not allowed", false)
		return nil, types.CodeInsufficientPrivilege, nil
	}
	answer, code, err := m.next.Handle(ctx, h, data)
	changed := code == types.CodeOK && rule.verb != "read"
	if rule.verb != "" {
		b.record(rule.verb, name, changed)
	}
	lose := faults.LoseReply && key == ipmiKeyOf(types.CommandChassisControl) ||
		faults.LoseEveryReply && changed && !session
	if lose && h.Session != nil {
		b.conn.next(h.Session, ipmiAfter{lose: true})
	}
	return answer, code, err
}

// getChannelAccess implements Get Channel Access (22.23): always available,
// users authenticate themselves.
func (b *IPMIBMC) getChannelAccess(_ context.Context, h *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
	if len(data) < 2 {
		return nil, types.CodeRequestDataLengthInvalid, nil
	}
	if n := data[0] & 0x0f; n != ipmiChannel && n != types.ChannelNumberSelf {
		return nil, types.CodeRequestDataFieldInvalid, nil
	}
	return []byte{0x02, uint8(bmc.PrivilegeLevelAdministrator)}, types.CodeOK, nil
}

// getSystemGUID implements Get System GUID (22.14): the same as the device's, until
// another board stands behind the BMC.
func (b *IPMIBMC) getSystemGUID(context.Context, *handlers.HandlerContext, []byte) ([]byte, types.CompletionCode, error) {
	return append([]byte(nil), b.guid.Load()[:]...), types.CodeOK, nil
}
