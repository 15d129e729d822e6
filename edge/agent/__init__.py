"""The process on the device, and `OnDeviceModel`, its model as a Python object for people who embed it."""

from edge.agent.model.answering import LearningLimits
from edge.agent.model.on_device_model import OnDeviceModel

__all__ = ["LearningLimits", "OnDeviceModel"]
