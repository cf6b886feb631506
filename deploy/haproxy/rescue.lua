-- A replica that hangs keeps the connections of those who wait for it. Once it has been down for a while they are ended,
-- and the balancer sends the requests to another replica (`retry-on empty-response`).
--
-- `on-marked-down shutdown-sessions` would do it at once, and with it end requests that are just connecting, which are not
-- sent again: one or two at every start and every end of a container.
local SECONDS = 3

core.register_task(function()
    while true do
        core.msleep(1000)
        for _, server in pairs(core.backends["stepdial"].servers) do
            local stats = server:get_stats()
            if stats.status:find("^DOWN") and tonumber(stats.lastchg) >= SECONDS and tonumber(stats.scur) > 0 then
                core.log(core.warning, "requests wait for " .. stats.svname .. ", which is down: they go elsewhere")
                server:shut_sess()
            end
        end
    end
end)
