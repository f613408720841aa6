package testenv

import (
	"crypto/rand"
	"net/http"
	"slices"
	"strconv"
	"time"
)

const (
	redfishSessionService = redfishRoot + "/SessionService"
	redfishSessions       = redfishSessionService + "/Sessions"
)

// redfishSession is one login. It ends after SessionTimeout without a request.
type redfishSession struct {
	id, token, user string
	from            string
	created, used   time.Time
}

// Sessions is how many are open.
func (b *RedfishBMC) Sessions() int {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	b.endIdle()
	return len(b.sessions)
}

// DropSessions forgets every session, as a restart of the BMC does.
func (b *RedfishBMC) DropSessions() {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	b.sessions = nil
}

// endIdle removes the sessions whose time is over; the lock is held.
func (b *RedfishBMC) endIdle() {
	b.sessions = slices.DeleteFunc(b.sessions, func(s *redfishSession) bool {
		return time.Since(s.used) > b.idle
	})
}

// authorised finds out who asks, and what an account may do whose password must
// be changed (DSP0266, 13.2.6.1): see itself and change it.
func (c *redfishCall) authorised() bool {
	if !c.identified() {
		return false
	}
	c.b.stateMu.Lock()
	must, own := c.account.mustChange, c.account.path()
	c.b.stateMu.Unlock()
	if !must || c.path == own && (c.r.Method == http.MethodGet || c.r.Method == http.MethodPatch) ||
		c.session != "" && c.path == redfishSessions+"/"+c.session {
		return true
	}
	c.log(": password must be changed")
	c.fail(http.StatusForbidden, "PasswordChangeRequired", own)
	return false
}

// identified checks the session token or the basic credentials of a request.
func (c *redfishCall) identified() bool {
	b := c.b
	if token := c.r.Header.Get("X-Auth-Token"); token != "" {
		b.stateMu.Lock()
		b.endIdle()
		for _, s := range b.sessions {
			if s.token == token {
				s.used = time.Now()
				c.account, c.session = b.account(s.user), s.id
			}
		}
		b.stateMu.Unlock()
		if c.account != nil {
			return true
		}
		c.log(": no such session")
		c.fail(http.StatusUnauthorized, "NoValidSession")
		return false
	}
	if user, password, ok := c.r.BasicAuth(); ok && !b.options.NoBasic {
		if c.account = c.checked(user, password); c.account != nil {
			return true
		}
	}
	if !b.options.NoBasic {
		c.w.Header().Set("WWW-Authenticate", `Basic realm="virtual BMC"`)
	}
	c.fail(http.StatusUnauthorized, "NoValidSession")
	return false
}

// checked is a login: the account, or nil.
func (c *redfishCall) checked(user, password string) *redfishAccount {
	b := c.b
	allowed := b.login(user)
	if !b.wait(c.faults.Redfish.LoginTakes) {
		return nil
	}
	b.stateMu.Lock()
	account := b.account(user)
	good := account != nil && account.enabled && redfishSame(account.password, password)
	b.stateMu.Unlock()
	if !allowed || !good {
		b.logEntry(b.systems[0], "Warning", "Base.ResourceAtUriUnauthorized", c.path, "login of '"+user+"' refused")
		return nil
	}
	b.loggedIn()
	return account
}

// openSession is the login.
func (b *RedfishBMC) openSession(c *redfishCall) {
	if b.options.NoSessions {
		c.refuse(http.StatusMethodNotAllowed, "OperationNotAllowed")
		return
	}
	var account struct {
		UserName, Password string
		Context            string
	}
	if !c.read(&account) {
		return
	}
	who := c.checked(account.UserName, account.Password)
	if who == nil {
		c.fail(http.StatusUnauthorized, "ResourceAtUriUnauthorized", redfishSessions, "the user name or password is wrong")
		return
	}
	now := time.Now()
	s := &redfishSession{token: rand.Text(), user: account.UserName, from: c.r.RemoteAddr, created: now, used: now}
	b.stateMu.Lock()
	b.endIdle()
	full := len(b.sessions) >= b.options.Sessions
	if !full {
		b.nextSession++
		s.id = strconv.Itoa(b.nextSession)
		b.sessions = append(b.sessions, s)
	}
	must := who.mustChange
	b.stateMu.Unlock()
	if full {
		c.fail(http.StatusServiceUnavailable, "SessionLimitExceeded")
		return
	}
	resource := b.session(s)
	if must {
		resource["@Message.ExtendedInfo"] = []any{redfishMessage("PasswordChangeRequired", who.path())}
	}
	c.w.Header().Set("X-Auth-Token", s.token)
	c.w.Header().Set("Location", redfishSessions+"/"+s.id)
	c.reply(http.StatusCreated, resource)
}

func (b *RedfishBMC) session(s *redfishSession) map[string]any {
	return redfishNew(redfishSessions+"/"+s.id, "#Session.v1_8_0.Session", s.id, "Session "+s.id, map[string]any{
		"UserName": s.user, "ClientOriginIPAddress": s.from, "CreatedTime": redfishTime(s.created), "SessionType": "Redfish",
	})
}

// sessionAt is the session with that id, or nil.
func (b *RedfishBMC) sessionAt(id string) *redfishResource {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	b.endIdle()
	for _, s := range b.sessions {
		if s.id == id {
			return &redfishResource{
				admin:  true,
				own:    s.user,
				get:    func() map[string]any { return b.session(s) },
				remove: func(c *redfishCall) { b.closeSession(c, id) },
			}
		}
	}
	return nil
}

func (b *RedfishBMC) closeSession(c *redfishCall, id string) {
	b.stateMu.Lock()
	before := len(b.sessions)
	b.sessions = slices.DeleteFunc(b.sessions, func(s *redfishSession) bool { return s.id == id })
	found := len(b.sessions) < before
	b.stateMu.Unlock()
	b.record("logout", id, found)
	if !found {
		c.missing()
		return
	}
	c.w.WriteHeader(http.StatusNoContent)
}

func (b *RedfishBMC) sessionService([]string) *redfishResource {
	return &redfishResource{
		admin: true,
		get: func() map[string]any {
			b.stateMu.Lock()
			defer b.stateMu.Unlock()
			return redfishNew(redfishSessionService, "#SessionService.v1_2_0.SessionService", "SessionService", "Session Service", map[string]any{
				"ServiceEnabled": !b.options.NoSessions, "SessionTimeout": int(b.idle / time.Second), "Sessions": redfishID(redfishSessions),
			})
		},
		patch: func(c *redfishCall) {
			var body struct{ SessionTimeout *int }
			if !c.read(&body) {
				return
			}
			if body.SessionTimeout == nil {
				c.refuse(http.StatusBadRequest, "PropertyMissing", "SessionTimeout")
				return
			}
			// 30 s to a day is what the schema allows.
			if n := *body.SessionTimeout; n < 30 || n > 86400 {
				c.refuse(http.StatusBadRequest, "PropertyValueNotInList", strconv.Itoa(n), "SessionTimeout")
				return
			}
			b.record("set-service", "SessionTimeout "+strconv.Itoa(*body.SessionTimeout), true)
			b.stateMu.Lock()
			b.idle = time.Duration(*body.SessionTimeout) * time.Second
			b.stateMu.Unlock()
			c.w.WriteHeader(http.StatusNoContent)
		},
	}
}

func (b *RedfishBMC) sessionCollection([]string) *redfishResource {
	return &redfishResource{
		publicPost: true,
		get: func() map[string]any {
			b.stateMu.Lock()
			defer b.stateMu.Unlock()
			b.endIdle()
			var members []string
			for _, s := range b.sessions {
				members = append(members, redfishSessions+"/"+s.id)
			}
			return redfishCollection(redfishSessions, "Session", members)
		},
		post: b.openSession,
	}
}
