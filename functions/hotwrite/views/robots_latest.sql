-- The last reading of each robot, by the time it was published: a robot's own clock may be wrong.
SELECT *
FROM `${DATASET}.telemetry`
WHERE TRUE
QUALIFY ROW_NUMBER() OVER (PARTITION BY robot_id ORDER BY publish_time DESC, seq DESC) = 1
